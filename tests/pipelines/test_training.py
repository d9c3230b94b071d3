"""The Kubeflow pipeline against dvc.yaml: one graph, defined twice, must not drift apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from atelier.cli import main
from atelier.config import load_params
from atelier.pipelines.compiling import Options, arguments, compile_pipeline
from atelier.pipelines.training import CREDENTIAL_KEYS, NEEDS
from atelier.plan import STAGES as PLANNED

PROJECT = Path(__file__).parents[2]
IMAGE = "registry.example.org/atelier@sha256:" + "0123456789abcdef" * 4
DATA_VERSION = ("repository", "revision", "dvc_remote")
STAGES = ("ingest", "prepare", "reference", "train", "evaluate", "register", "compare")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and what it asks of Kubernetes, from the file that is uploaded."""
    target = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(load_params(PROJECT / "params.yaml"), Options(IMAGE, gpus=2), target)
    specification, platform = YAML(typ="safe", pure=True).load_all(target.read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def dvc_stages() -> dict[str, Any]:
    """Those of dvc.yaml but the first, which is for DVC."""
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load((PROJECT / "dvc.yaml").read_text())["stages"]
    return {name: stage | stage.get("do", {}) for name, stage in stages.items() if name != "plan"}


def dvc_edges() -> set[tuple[str, str]]:
    """(before, after) for each stage that reads what another writes."""
    stages = dvc_stages()

    def place(path: str) -> str:
        return re.sub(r"/?\$\{.*", "", path)  # models/${key} and models/${item.name} are one place

    writes = {
        place(next(iter(out)) if isinstance(out, dict) else out): name
        for name, stage in stages.items()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    return {
        (writes[place(path)], name)
        for name, stage in stages.items()
        for path in stage.get("deps", [])
        if place(path) in writes
    }


class Graph:
    """The tasks of a compiled pipeline without the nesting: which executor gets what from which."""

    def __init__(self, specification: dict[str, Any]) -> None:
        self.components = specification["components"]
        self.edges: set[tuple[str, str]] = set()
        self.inputs: dict[str, set[str]] = {}
        self.loops: dict[str, str] = {}
        root = specification["root"]
        # the inputs of the root are the pipeline's parameters, each of its own name
        self.walk(root, {}, {name: name for name in root["inputDefinitions"]["parameters"]}, "")

    def walk(self, component: dict[str, Any], artifacts: dict[str, str], parameters: dict[str, str], loop: str) -> None:
        """Visit the tasks of a graph, given which stages and pipeline parameters its inputs come from."""
        tasks = component["dag"]["tasks"]
        for name, task in tasks.items():
            inner = self.components[task["componentRef"]["name"]]
            iterator = task.get("parameterIterator")
            own_artifacts, own_parameters = {}, {}
            for key, source in task.get("inputs", {}).get("artifacts", {}).items():
                if "componentInputArtifact" in source:
                    own_artifacts[key] = artifacts[source["componentInputArtifact"]]
                else:
                    output = source["taskOutputArtifact"]
                    own_artifacts[key] = self.producer(tasks, output["producerTask"], output["outputArtifactKey"])
            for key, source in task.get("inputs", {}).get("parameters", {}).items():
                if "componentInputParameter" in source:
                    # a name that the graph around does not have is what the server fails on
                    assert source["componentInputParameter"] in component["inputDefinitions"]["parameters"]
                    own_parameters[key] = parameters.get(source["componentInputParameter"], "")
            required = {
                key
                for key, definition in inner.get("inputDefinitions", {}).get("parameters", {}).items()
                if not definition.get("isOptional")
            }
            given = set(task.get("inputs", {}).get("parameters", {})) | {(iterator or {}).get("itemInput")}
            assert required <= given, (name, required - given)
            if iterator:
                own_parameters[iterator["itemInput"]] = own_parameters[iterator["items"]["inputParameter"]]
            over = own_parameters[iterator["items"]["inputParameter"]] if iterator else loop
            if "dag" in inner:
                self.walk(inner, own_artifacts, own_parameters, over)
            else:
                self.edges |= {(producer, name) for producer in own_artifacts.values()}
                self.inputs[name] = {own_parameters.get(key) or key for key in required}
                self.loops[name] = over

    def producer(self, tasks: dict[str, Any], task: str, key: str) -> str:
        """The stage behind an output of a task, however deep below."""
        inner = self.components[tasks[task]["componentRef"]["name"]]
        if "dag" not in inner:
            return task
        (selector,) = inner["dag"]["outputs"]["artifacts"][key]["artifactSelectors"]
        return self.producer(inner["dag"]["tasks"], selector["producerSubtask"], selector["outputArtifactKey"])


def closure(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every (before, after), also through others: dvc.yaml names only the last link of some chains."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


@pytest.fixture(scope="module")
def graph(compiled: tuple[dict[str, Any], dict[str, Any]]) -> Graph:
    return Graph(compiled[0])


def test_the_stages_are_those_of_dvc_yaml(graph: Graph) -> None:
    assert tuple(dvc_stages()) == STAGES
    assert set(graph.inputs) == {*STAGES, "params", "close-runs"} == set(NEEDS) - {"train-on-nodes"}


def test_the_edges_are_those_of_dvc_yaml(graph: Graph) -> None:
    assert {edge for edge in closure(graph.edges) if edge[0] != "params"} == closure(dvc_edges())
    assert {after for before, after in graph.edges if before == "params"} == set(STAGES)


def test_every_stage_reads_the_parameters_that_the_plan_says(graph: Graph) -> None:
    for name, stage in PLANNED.items():
        sections = {read.partition(".")[0] for read in stage.reads} & set(STAGES)
        assert graph.inputs[name] & set(STAGES) == sections, name


def test_the_stages_go_over_the_same_lists(graph: Graph) -> None:
    for name, stage in dvc_stages().items():
        assert graph.loops[name] == re.sub(r"\W", "", stage.get("foreach", "")), name


def test_defaults_are_params_yaml(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    parameters = compiled[0]["root"]["inputDefinitions"]["parameters"]
    defaults = {name: definition["defaultValue"] for name, definition in parameters.items()}
    assert defaults == arguments(load_params(PROJECT / "params.yaml")) | dict.fromkeys(DATA_VERSION, "")
    assert all(definition["description"] for definition in parameters.values())


def test_the_file_is_what_the_server_parses(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    message = json_format.ParseDict(compiled[0], pipeline_spec_pb2.PipelineSpec())
    assert message.pipeline_info.name == "atelier-training"


def test_images_resources_and_secrets(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    specification, kubernetes = compiled
    executors = specification["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {IMAGE}
    for name, executor in executors.items():
        stage = name.removeprefix("exec-")
        accelerator = executor["container"]["resources"].get("accelerator", {})
        assert accelerator.get("resourceCount") == {"train": "2", "reference": "1", "evaluate": "1"}.get(stage)
        assert "pip install" not in str(executor)
        (secret,) = kubernetes[name]["secretAsEnv"]
        assert {key["envVar"] for key in secret["keyToEnv"]} == set(CREDENTIAL_KEYS)
    assert kubernetes["exec-train"]["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    assert kubernetes["exec-train"]["pvcMount"][0]["mountPath"] == "/workspaces"


def test_caching_is_off_for_what_leaves_something_behind(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    caching = {}
    for component in [compiled[0]["root"], *compiled[0]["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            caching[name] = task.get("cachingOptions", {}).get("enableCache", False)
    assert not caching["register"]
    assert not caching["close-runs"]
    assert all(caching[name] for name in STAGES if name != "register")


def test_on_several_nodes_training_is_launched(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    options = Options(IMAGE, gpus=4, nodes=2, deadline_hours=5)
    compile_pipeline(load_params(PROJECT / "params.yaml"), options, target)
    specification, platform = YAML(typ="safe", pure=True).load_all(target.read_text())
    graph = Graph(specification)
    assert {edge for edge in graph.edges if "train-on-nodes" in edge} == {
        (before.replace("train", "train-on-nodes"), after.replace("train", "train-on-nodes"))
        for before, after in {("params", "train"), ("prepare", "train")}
        | {("train", after) for after in ("evaluate", "register", "compare")}
    }
    task = next(
        tasks["train-on-nodes"]
        for component in specification["components"].values()
        if "train-on-nodes" in (tasks := component.get("dag", {}).get("tasks", {}))
    )
    assert not task["cachingOptions"].get("enableCache", False)
    constants = {
        key: value["runtimeValue"]["constant"]
        for key, value in task["inputs"]["parameters"].items()
        if "runtimeValue" in value
    }
    assert constants == {"nodes": 2, "processes": 4, "image": IMAGE, "deadline_hours": 5}
    container = specification["deploymentSpec"]["executors"]["exec-train-on-nodes"]["container"]
    assert "accelerator" not in container["resources"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train-on-nodes"]
    assert {"POD_NAME", "POD_UID", "POD_NAMESPACE"} <= {field["name"] for field in kubernetes["fieldPathAsEnv"]}
    assert kubernetes["pvcMount"]


@pytest.mark.parametrize("image", ["atelier", "atelier:latest", "atelier@sha256:123"])
def test_an_image_that_is_not_named_by_its_digest_is_refused(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pipeline.yaml"
    command = ["pipeline", "compile", "--image", image, "-o", str(target), "--root", str(PROJECT)]
    monkeypatch.setattr("sys.argv", ["atelier", *command])
    assert main() == 2
    assert "by its digest" in capsys.readouterr().err
    assert not target.exists()

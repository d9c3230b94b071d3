"""The Kubeflow pipeline against dvc.yaml: one graph, defined twice, must not drift apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from atelier.cli import main
from atelier.components.workspace import CLUSTER, COMMON_PARAMS, as_written, fill
from atelier.config import load_params
from atelier.config.cluster import Cluster
from atelier.errors import InputError
from atelier.files import digest, write_json
from atelier.pipelines.training import CREDENTIAL_KEYS, NEEDS, Options, arguments, common_params, compile_pipeline
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
    """The tasks of a compiled pipeline without the nesting, as Kubeflow's driver resolves what they get.

    What its driver does not resolve, or resolves wrongly, is an error here; seen on a server of version 2.17.
    """

    def __init__(self, specification: dict[str, Any]) -> None:
        self.components = specification["components"]
        self.edges: set[tuple[str, str]] = set()
        self.loops: dict[str, tuple[str, ...]] = {}
        self.fields: dict[str, set[str]] = {}  # of a loop's item
        root = specification["root"]
        self.walk(root, {}, {name: (name,) for name in root["inputDefinitions"]["parameters"]}, ())

    def walk(
        self,
        component: dict[str, Any],
        artifacts: dict[str, str],
        parameters: dict[str, tuple[str, ...]],
        loops: tuple[str, ...],
    ) -> None:
        """Visit the tasks of a graph, given the stages and the paths in the pipeline's parameters its inputs are of."""
        tasks = component["dag"]["tasks"]
        for name, task in tasks.items():
            inner = self.components[task["componentRef"]["name"]]
            own_artifacts, own_parameters = {}, {}
            for key, source in task.get("inputs", {}).get("artifacts", {}).items():
                if "dag" in inner:  # else the last item arrives, for all (metadata/client.go; issue 13900)
                    assert not inner["inputDefinitions"]["artifacts"][key].get("isArtifactList"), f"a list into {name}"
                if "componentInputArtifact" in source:
                    own_artifacts[key] = artifacts[source["componentInputArtifact"]]
                else:
                    output = source["taskOutputArtifact"]
                    own_artifacts[key] = self.producer(tasks, output["producerTask"], output["outputArtifactKey"])
            for key, source in task.get("inputs", {}).get("parameters", {}).items():
                if "componentInputParameter" in source:
                    # a name that the graph around does not have is what the server fails on
                    assert source["componentInputParameter"] in component["inputDefinitions"]["parameters"]
                    field = re.findall(r'"(\w+)"', source.get("parameterExpressionSelector", ""))
                    own_parameters[key] = (*parameters[source["componentInputParameter"]], *field)
            wanted = inner.get("inputDefinitions", {}).get("parameters", {})
            required = {key for key, definition in wanted.items() if not definition.get("isOptional")}
            own_loops = loops
            if iterator := task.get("parameterIterator"):
                items = iterator["items"]["inputParameter"]
                selector = task["inputs"]["parameters"][items].get("parameterExpressionSelector")
                assert not selector, f"{name} loops over a field of an item: value not found in inputs"
                own_parameters[iterator["itemInput"]] = own_parameters[items]
                own_loops = (*loops, ".".join(own_parameters[items]))
            given = set(task.get("inputs", {}).get("parameters", {})) | {(iterator or {}).get("itemInput")}
            assert required <= given, (name, required - given)
            if "dag" in inner:
                self.walk(inner, own_artifacts, own_parameters, own_loops)
            else:
                self.edges |= {(producer, name) for producer in own_artifacts.values()}
                self.loops[name] = own_loops
                self.fields[name] = {".".join(path) for path in own_parameters.values()}

    def producer(self, tasks: dict[str, Any], task: str, key: str) -> str:
        """The stage behind an output of a task, however deep below."""
        inner = self.components[tasks[task]["componentRef"]["name"]]
        if "dag" not in inner:
            return task
        (selector,) = inner["dag"]["outputs"]["artifacts"][key]["artifactSelectors"]
        return self.producer(inner["dag"]["tasks"], selector["producerSubtask"], selector["outputArtifactKey"])


def pods(specification: dict[str, Any], component: dict[str, Any], value: Any) -> int:
    """How many pods a graph becomes: a driver each level, loop, turn of a loop and step, and the steps."""
    count = 1  # its own driver
    for task in component["dag"]["tasks"].values():
        inner = specification["components"][task["componentRef"]["name"]]
        values = [value]
        if "parameterIterator" in task:
            count += 1
            values = value["datasets"] if isinstance(value, dict) and "datasets" in value else value["runs"]
        for one in values:
            count += pods(specification, inner, one) if "dag" in inner else 2
    return count


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
    assert tuple(dvc_stages()) == STAGES == tuple(PLANNED)
    assert set(graph.loops) == {*STAGES, "close-runs"} == set(NEEDS) - {"train-on-nodes", "promote", "search"}


def test_the_edges_are_those_of_dvc_yaml(graph: Graph) -> None:
    assert closure(graph.edges) == closure(dvc_edges())


def test_every_stage_gets_its_own_part_of_the_parameters(graph: Graph) -> None:
    for name in STAGES:
        of_item = "".join(f"{loop}." for loop in graph.loops[name][-1:])
        assert f"{of_item}{name}" in graph.fields[name]


def test_the_stages_go_over_the_same_lists(graph: Graph) -> None:
    lists = {"datasets": ("datasets",), "runs": ("datasets", "datasets.runs"), "": ()}
    for name, stage in dvc_stages().items():
        assert graph.loops[name] == lists[re.sub(r"\W", "", stage.get("foreach", ""))], name


def test_one_data_set_and_one_run_are_23_pods(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one = {"datasets": [{"runs": [{}]}]}
    two = {"datasets": [{"runs": [{}, {}]}, {"runs": [{}]}, {"runs": []}]}
    specification, _ = compiled
    assert pods(specification, specification["root"], one) == 23
    assert pods(specification, specification["root"], two) == 23 + 7 + 16 + 9


def test_what_is_done_at_the_end_is_done_of_a_pipeline(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    specification, _ = compiled
    tasks = specification["root"]["dag"]["tasks"]
    assert tasks["close-runs"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    (upstream,) = tasks["close-runs"]["dependentTasks"]
    assert "dag" in specification["components"][tasks[upstream]["componentRef"]["name"]]
    # compiler/argocompiler/dag.go forgets it of a loop
    assert "parameterIterator" not in tasks[upstream]


def test_defaults_are_params_yaml(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    parameters = compiled[0]["root"]["inputDefinitions"]["parameters"]
    defaults = {name: definition["defaultValue"] for name, definition in parameters.items()}
    assert defaults == arguments(load_params(PROJECT / "params.yaml")) | dict.fromkeys(DATA_VERSION, "")
    assert all(definition["description"] for definition in parameters.values())


def test_ten_compilations_are_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from atelier.config import load_params\n"
        "from atelier.pipelines.training import Options, compile_pipeline\n"
        f"params = load_params(Path({str(PROJECT / 'params.yaml')!r}))\n"
        f"for n in range(5): compile_pipeline(params, Options({IMAGE!r}), Path(sys.argv[1], f'{{n}}.yaml'))"
    )
    for seed in "12":  # kfp writes a set in the order of its hashes
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / seed)]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
    files = list(tmp_path.glob("*/*.yaml"))
    assert len(files) == 10
    assert len({digest(file) for file in files}) == 1


TWO = """
datasets: [mnist, faces]
runs:
  a: {dataset: mnist, model: cgan}
  b: {dataset: faces, model: dcgan, labels: false}
  c: {dataset: mnist, model: cvae}
ingest: {paths: {mnist: m.zip, faces: f.zip}}
prepare: {sets: {faces: {side: 64, channels: 3}}}
"""


def stages_of(params: Path, *overrides: str) -> dict[tuple[str, str], Any]:
    """What each task gets of the parameters: (stage, data set or run) → its params.yaml."""
    values = arguments(load_params(params, overrides))
    found: dict[tuple[str, str], Any] = {("compare", ""): values["compare"]}
    for item in values["datasets"]:
        found |= {(stage, item["dataset"]): item[stage] for stage in ("ingest", "prepare", "reference")}
        for run in item["runs"]:
            found |= {(stage, run["run"]): run[stage] for stage in ("train", "evaluate", "register")}
    return found


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("compare.title=x", "compare"),
        ("runs.a.seed=1", "train a, evaluate a, register a, compare"),
        ("train.tick_kimg=8", "train, register"),
        ("evaluate.samples=500", "reference, evaluate"),
        ("evaluate.likelihood_images=5", "evaluate"),
        ("reference.seed=1", "reference"),
        ("register.prefix=x", "register"),
        ("prepare.left_out_limit=0.5", "prepare, register"),
        ("prepare.sets.mnist={side: 32}", "mnist, a, c, compare"),
        ("train.checkpoint_seconds=5", ""),
        ("ingest.timeout_seconds=5", ""),
        ("promote.at_most={}", ""),
        ("cluster.resources.train.cpu=4", ""),
    ],
)
def test_a_parameter_reaches_those_that_read_it(change: str, stages: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TWO)
    before, after = stages_of(tmp_path / "params.yaml"), stages_of(tmp_path / "params.yaml", change)
    assert set(before) == set(after)
    expected = {task for task in before for words in stages.split(", ") if words and set(words.split()) <= set(task)}
    assert {task for task in before if before[task] != after[task]} == expected


def test_what_changes_nothing_that_is_made_reaches_the_stages_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(TWO)
    params = load_params(tmp_path / "params.yaml", ["train.checkpoint_seconds=5", "reference.inception=i.pth"])
    monkeypatch.setenv(COMMON_PARAMS, common_params(params))
    training = arguments(params)["datasets"][0]["runs"][0]["train"]
    fill(tmp_path, training, [])
    given = load_params(tmp_path / "params.yaml")
    assert (given.train, given.reference.inception) == (params.train, "i.pth")
    assert "checkpoint_seconds" not in str(training)


def test_what_a_stage_is_given_is_a_whole_params_yaml(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TWO)
    for (stage, name), values in stages_of(tmp_path / "params.yaml").items():
        write_json(tmp_path / "stage.yaml", as_written(values))
        given = load_params(tmp_path / "stage.yaml")
        if stage in ("ingest", "prepare", "reference"):
            assert given.datasets == [name]
        elif stage != "compare":
            assert list(given.runs) == [name]
        else:
            assert list(given.runs) == ["a", "b", "c"]  # the report's order


def test_later_tries_have_as_long_as_the_stage(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    policies = [
        task["retryPolicy"]
        for component in compiled[0]["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "executorLabel" in compiled[0]["components"][task["componentRef"]["name"]]
    ]
    assert len(policies) == len(STAGES)
    # Argo counts it from the start of the first try and ends the later ones with it (controller/operator.go)
    assert {policy["backoffMaxDuration"] for policy in policies} == {f"{72 * 3600}s"}


def test_a_batch_that_does_not_split_is_refused_before_anything_runs(tmp_path: Path) -> None:
    params = load_params(PROJECT / "params.yaml", ["runs.mnist-cgan.batch=63"])
    with pytest.raises(InputError, match=r"runs\.mnist-cgan\.batch: batch 63 does not split evenly over 2 ranks"):
        compile_pipeline(params, Options(IMAGE, gpus=1, nodes=2), tmp_path / "pipeline.yaml")


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


def test_a_run_promotes_when_asked_last_and_never_from_the_cache(
    compiled: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    params = load_params(PROJECT / "params.yaml", ("promote.at_most={fd_classifier: 3}",))
    target = compile_pipeline(params, Options(IMAGE, promote="best"), tmp_path / "pipeline.yaml")
    specification, _ = YAML(typ="safe", pure=True).load_all(target.read_text())
    tasks = specification["components"]["comp-stages"]["dag"]["tasks"]
    assert "promote" not in compiled[0]["components"]["comp-stages"]["dag"]["tasks"]
    assert tasks["promote"]["dependentTasks"] == ["compare", "for-loop-1"]
    assert "enableCache" not in tasks["promote"]["cachingOptions"]
    inputs = tasks["promote"]["inputs"]["parameters"]
    assert inputs["alias"]["runtimeValue"]["constant"] == "best"
    assert inputs["params"]["runtimeValue"]["constant"]["promote"]["at_most"] == {"fd_classifier": 3}


def test_on_several_nodes_training_is_launched(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    options = Options(IMAGE, gpus=4, nodes=2, deadline_hours=5)
    compile_pipeline(load_params(PROJECT / "params.yaml"), options, target)
    specification, platform = YAML(typ="safe", pure=True).load_all(target.read_text())
    graph = Graph(specification)
    assert {edge for edge in graph.edges if "train-on-nodes" in edge} == {
        (before.replace("train", "train-on-nodes"), after.replace("train", "train-on-nodes"))
        for before, after in {("prepare", "train")}
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
    assert constants == {"nodes": 2, "gpus": 4, "image": IMAGE, "deadline_hours": 5}
    container = specification["deploymentSpec"]["executors"]["exec-train-on-nodes"]["container"]
    assert "accelerator" not in container["resources"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train-on-nodes"]
    assert {"POD_NAME", "POD_UID", "POD_NAMESPACE"} <= {field["name"] for field in kubernetes["fieldPathAsEnv"]}
    assert kubernetes["pvcMount"]


def threads_of(executor: dict[str, Any]) -> str:
    return next(one["value"] for one in executor["container"]["env"] if one["name"] == "OMP_NUM_THREADS")


def test_the_processes_of_a_training_share_its_processors(tmp_path: Path) -> None:
    params = load_params(PROJECT / "params.yaml", CLUSTER_KEYS)
    for gpus, threads in ((4, "2"), (16, "1")):
        compiled = compile_pipeline(params, Options(IMAGE, gpus=gpus), tmp_path / "pipeline.yaml")
        specification, _ = YAML(typ="safe", pure=True).load_all(compiled.read_text())
        assert threads_of(specification["deploymentSpec"]["executors"]["exec-train"]) == threads


CLUSTER_KEYS = (
    "cluster.resources.train={cpu: 6, memory: 24Gi, cpu_limit: 8}",
    "cluster.shared_memory=1Gi",
    "cluster.nodes={pool: any}",
    "cluster.gpu_nodes={pool: gpu}",
    "cluster.tolerations=[{key: batch, operator: Exists}]",
    "cluster.gpu_tolerations=[{key: gpu, value: here, effect: NoExecute, seconds: 60}]",
    "cluster.queue=team",
    "cluster.priority=night",
    "cluster.parallel=3",
)


def test_steps_run_where_and_ask_for_what_params_yaml_says(tmp_path: Path) -> None:
    params = load_params(PROJECT / "params.yaml", CLUSTER_KEYS)
    target = compile_pipeline(params, Options(IMAGE, gpus=1), tmp_path / "pipeline.yaml")
    specification, platform = YAML(typ="safe", pure=True).load_all(target.read_text())
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = specification["deploymentSpec"]["executors"]
    resources = executors["exec-train"]["container"]["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("6", "8")
    assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == "24Gi"
    assert kubernetes["exec-train"]["emptyDirMounts"][0]["sizeLimit"] == "1Gi"
    assert {name: threads_of(executors[name]) for name in ("exec-train", "exec-reference", "exec-prepare")} == {
        "exec-train": "8",  # up to its limit
        "exec-reference": "2",
        "exec-prepare": "1",
    }
    with_gpu = ("exec-train", "exec-reference", "exec-evaluate")
    for name in executors:
        pool = "gpu" if name in with_gpu else "any"
        assert kubernetes[name]["nodeSelector"]["labels"] == {"pool": pool}
        first, *rest = kubernetes[name]["tolerations"]
        assert first == {"key": "batch", "operator": "Exists"}
        gpu = {"key": "gpu", "operator": "Equal", "value": "here", "effect": "NoExecute", "tolerationSeconds": "60"}
        assert rest == ([gpu] if name in with_gpu else [])
        # the last step ends what is left: it waits for nothing
        labels = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "night"}
        assert kubernetes[name].get("podMetadata", {}).get("labels", {}) == ({} if "close" in name else labels)
    at_a_time = [
        task["iteratorPolicy"]["parallelismLimit"]
        for component in specification["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    assert sorted(at_a_time) == [1, 3]
    assert "cluster" not in str(arguments(params))  # nothing is made anew for it
    assert "cluster" not in common_params(params)


def test_a_step_that_launches_does_not_wait_in_the_queue_and_hands_the_cluster_on(tmp_path: Path) -> None:
    params = load_params(PROJECT / "params.yaml", CLUSTER_KEYS)
    target = compile_pipeline(params, Options(IMAGE, nodes=2), tmp_path / "pipeline.yaml")  # of CPUs
    specification, platform = YAML(typ="safe", pure=True).load_all(target.read_text())
    launching = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train-on-nodes"]
    assert "podMetadata" not in launching
    environment = {
        one["name"]: one["value"]
        for one in specification["deploymentSpec"]["executors"]["exec-train-on-nodes"]["container"]["env"]
    }
    assert Cluster.model_validate_json(environment[CLUSTER]) == params.cluster


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

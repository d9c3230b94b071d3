"""A small model of the user's own, in a workspace or as an installed package; and a loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

MODEL = '''\
"""`mine`: two layers."""

from torch import nn
from .blocks import FILL

from atelier.models import GanRecipe, ImageShape, Model
from atelier.models.layers import Flatten, Unconditional

MODEL = Model(
    recipe=GanRecipe(kimg=0.1, batch=20, latent=4, width=4, generator_lr=1e-3, discriminator_lr=1e-3, precision="fp32"),
    source="my own",
    data_range="symmetric",
)


def generator(recipe: GanRecipe, shape: ImageShape) -> nn.Module:
    # a comment
    sides = shape.channels, shape.height, shape.width
    pixels = shape.channels * shape.height * shape.width
    return Unconditional(nn.Linear(recipe.latent, pixels), nn.Tanh(), nn.Unflatten(1, sides))


def discriminator(recipe: GanRecipe, shape: ImageShape) -> nn.Module:
    last = nn.Linear(shape.channels * shape.height * shape.width, 1)
    nn.init.constant_(last.weight, FILL)
    return Unconditional(Flatten(), last, nn.Flatten(0))


def unused() -> None:
    pass
'''
LOSS = '''\
"""The hinge loss with a margin of a half."""

import torch.nn.functional as F

from atelier.training.losses import AdversarialLoss

LOSS = AdversarialLoss(
    real=lambda logits, label: F.relu(0.5 - logits).mean(),
    fake=lambda logits: F.relu(0.5 + logits).mean(),
    generator_on_fakes=lambda logits: -logits.mean(),
)
'''
# of a workspace whose data set `own` is ingested: everything as small as it goes
SMALL_STAGES = """prepare: {sets: {own: {side: 28, channels: 1, test_share: 0.4, classes: [cat, dog]}}}
reference: {classifier_kimg: 0.1}
train: {tick_kimg: 0.1, pictures: 2}
evaluate:
  {samples: 100, draws: 2, manifold_samples: 50, memorisation_samples: 5, accuracy_kimg: 0.1, likelihood_images: 5,
  likelihood_samples: 2}
"""
PARAMS = (
    """
datasets: [own]
runs: {run: {dataset: own, model: NAME}}
ingest: {paths: {own: pictures}}
"""
    + SMALL_STAGES
)
DISTRIBUTION = "house-of-models==1.5"


def write_model(root: Path, name: str = "mine", blocks: str = "FILL = 1.0\n") -> Path:
    """A model in a workspace, and the file beside it that it imports."""
    folder = root / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "blocks.py").write_text(blocks)
    path = folder / f"{name}.py"
    path.write_text(MODEL)
    return path


def write_loss(root: Path) -> Path:
    """The loss `softer` of a workspace; `loss: softer` in a run asks for it."""
    path = root / "losses" / "softer.py"
    path.parent.mkdir()
    path.write_text(LOSS)
    return path


def write_params(root: Path, name: str = "mine") -> Path:
    """A `params.yaml` whose only run is of that model."""
    path = root / "params.yaml"
    path.write_text(PARAMS.replace("NAME", name))
    return path


def install(site: Path) -> Path:
    """A distribution with the model `theirs`, as pip lays it out; returns the folder for Python's path."""
    package = site / "house_of_models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "blocks.py").write_text("FILL = 7.0\n")
    (package / "nets.py").write_text(MODEL)
    name, _, version = DISTRIBUTION.partition("==")
    info = site / f"{package.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[atelier.models]\ntheirs = house_of_models.nets\n")
    return site


def install_here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`install` for this process, which forgets the distribution of an earlier test."""
    monkeypatch.syspath_prepend(install(site))
    for name in [name for name in sys.modules if name.partition(".")[0] == "house_of_models"]:
        monkeypatch.delitem(sys.modules, name)
    return site

"""The model of the user's own in the README, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch

from atelier import models
from atelier.models import MODELS, ImageShape, build_networks
from atelier.training.method import build_method

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch) -> str:
    _, section = README.read_text().split("## A model of your own\n")
    file, entry = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len((file + entry).splitlines()) < 30
    module = ModuleType("atelier.models.mine")
    exec(file, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, model in eval(f"{{{entry}}}", vars(models)).items():
        monkeypatch.setitem(MODELS, name, model)
    return "mine"


@pytest.mark.parametrize("shape", [ImageShape(28, 28, 1, 0), ImageShape(64, 64, 3, 0)], ids=str)
def test_it_trains(own_model: str, shape: ImageShape) -> None:
    entry = MODELS[own_model]
    recipe = msgspec.structs.replace(entry.recipe, width=4, batch=8)
    networks = build_networks(own_model, recipe, shape)
    method = build_method(entry, recipe, networks, 0, torch.device("cpu"))
    figures = method.step(torch.rand(8, shape.channels, shape.height, shape.width) * 2 - 1, None)
    assert all(value.isfinite() for value in figures.values())
    images = method.sampling_network()(torch.randn(3, recipe.noise), None)
    assert images.shape == (3, shape.channels, shape.height, shape.width)

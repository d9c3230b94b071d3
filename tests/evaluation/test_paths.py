from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atelier.config.records import ModelConfig
from atelier.evaluation import paths
from atelier.evaluation.paths import between, path_length
from atelier.models import MODELS
from atelier.sampler import Sampler, grey_values

NOISE, COUNT = 6, 101  # places of which a hundredth is a whole one


class Network(nn.Module):
    """Images of 4 × 4 pixels, smooth in the noise, which no rounding disturbs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(NOISE, 16).double()
        self.asked = list[Tensor]()

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        if labels is not None:
            self.asked.append(labels)
        return torch.sin(self.linear(noise.double())).reshape(-1, 1, 4, 4)


class Extractor:
    """A layer of random weights."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.layer = nn.Linear(16, 5).double()

    def of_pixels(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.layer(pixels.flatten(1).double() / 255))


def sampler_of(model: str) -> Sampler:
    config = SimpleNamespace(recipe=MODELS[model].recipe, data_range="symmetric", noise=NOISE, class_names=[])
    return Sampler(Network(), cast("ModelConfig", config))


class Drawing(nn.Module):
    """As torchmetrics draws: it looks at the place that is sampled first and one on the way to the second."""

    def __init__(self, sampler: Sampler, latents: list[Tensor]) -> None:
        super().__init__()
        self.sampler, self.latents = sampler, latents

    def sample(self, num_samples: int) -> Tensor:
        return self.latents.pop(0)

    def forward(self, latents: Tensor) -> Tensor:
        return grey_values(self.sampler.network(latents, None), "symmetric")


class Distance(nn.Module):
    """The squared chord between two unit vectors, by the cosine of their angle."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (self.extractor.of_pixels((image + 1) * 127.5) for image in (first, second))
        return 2 - 2 * (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


@pytest.mark.parametrize(("model", "way"), [("cgan", "slerp_any"), ("cvae", "lerp")])
def test_equal_to_torchmetrics_over_the_same_generator(model: str, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import perceptual_path_length

    monkeypatch.setattr(paths, "STEP", 1e-2)  # the smallest that float32 latents do not blur
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.zeros(*size))  # as it begins all its ways
    sampler, extractor = sampler_of(model), Extractor()
    generator, parts = torch.Generator().manual_seed(3), []
    for size in (100, 1):
        parts.append(torch.randn(2, size, NOISE, generator=generator))
    start, end = torch.cat(parts, dim=1)
    if model == "cvae":
        end[:, -1] = start[:, -1]
    theirs, _, _ = perceptual_path_length(
        cast("Any", Drawing(sampler, [start, end])),
        num_samples=COUNT,
        interpolation_method=way,
        epsilon=1e-2,
        resize=None,
        sim_net=Distance(extractor),
    )
    ours = path_length(sampler, cast("Any", extractor), None, COUNT, 3)
    assert ours == pytest.approx(float(theirs), rel=1e-3)
    assert ours > 0.01


def test_the_step_is_small_enough_and_not_lost_in_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, extractor = sampler_of("cgan"), cast("Any", Extractor())
    ours = path_length(sampler, extractor, None, COUNT, 3)
    monkeypatch.setattr(paths, "STEP", 1e-3)
    assert ours == pytest.approx(path_length(sampler, extractor, None, COUNT, 3), rel=3e-3)


def test_both_ends_of_a_step_are_of_one_class() -> None:
    sampler = sampler_of("cgan")
    path_length(sampler, cast("Any", Extractor()), np.arange(COUNT) % 10, COUNT, 3)
    network = cast("Network", sampler.network)
    assert [len(asked) for asked in network.asked] == [200, 2]
    for asked in network.asked:
        here, there = asked.chunk(2)
        assert torch.equal(here, there)
    assert torch.equal(network.asked[0][:100], torch.arange(100) % 10)


def test_a_gan_goes_on_the_sphere_and_a_vae_keeps_its_component() -> None:
    start, end = torch.randn(2, 500, NOISE, generator=torch.Generator().manual_seed(0))
    unit = nn.functional.normalize(start), nn.functional.normalize(end)
    middle = between(sampler_of("cgan"), *unit, torch.tensor(0.5))
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(500), rtol=1e-3, atol=1e-3)
    middle = between(sampler_of("cvae"), start, end, torch.tensor(0.5))
    assert torch.equal(middle[:, -1], start[:, -1])
    torch.testing.assert_close(middle[:, :-1], (start[:, :-1] + end[:, :-1]) / 2)

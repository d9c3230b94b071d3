"""A VAE whose likelihood is known: x = z in each of two pixels, with noise, so that the evidence has a formula; and one
of random weights, whose bounds are computed again without haste."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.overrides import TorchFunctionMode

from atelier.evaluation import likelihood
from atelier.evaluation.likelihood import TrainedVae, likelihood_metrics
from atelier.models import MODELS, ImageShape, build_likelihood, build_networks
from atelier.models.likelihood import Gaussian
from atelier.ranks import Ranks
from atelier.sampler import Sampler
from untrained import write_untrained

VARIANCE = 0.5
LATENT = 16


class LinearVae:
    """z ~ N(0, 1), x = (z, z) + noise of VARIANCE; `encoder` is the exact posterior, made wider by `excess`."""

    def __init__(self, excess: float) -> None:
        self.device = torch.device("cpu")
        self.likelihood = Gaussian()
        self.likelihood.log_variance.data.fill_(math.log(VARIANCE))
        self.likelihood.mean = lambda output: output  # type: ignore[method-assign]
        self.recipe = SimpleNamespace(latent=1)
        self.precision = 1 + 2 / VARIANCE
        self.excess = excess

    def inputs(self, images: Any, labels: Any, generator: Any) -> tuple[Tensor, None]:
        return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255, None

    def encoder(self, pixels: Tensor, labels: None) -> tuple[Tensor, Tensor]:
        mean = pixels.flatten(1).sum(dim=1, keepdim=True) / VARIANCE / self.precision
        return mean, torch.full_like(mean, math.log(1 / self.precision) + self.excess)

    def decoder(self, latents: Tensor, labels: None) -> Tensor:
        return latents[:, :, None, None].expand(-1, 1, 1, 2)


def evidence(images: np.ndarray[Any, Any]) -> float:
    x = torch.from_numpy(images).flatten(1).double() / 255
    covariance = torch.ones(2, 2, dtype=torch.float64) + VARIANCE * torch.eye(2, dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x).mean())


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (40, 1, 2, 1), dtype=np.uint8)


def metrics(excess: float, images: Any, samples: int) -> dict[str, float]:
    return likelihood_metrics(LinearVae(excess), images, None, samples, seed=0, ranks=Ranks())  # type: ignore[arg-type]


def test_with_the_exact_posterior_both_are_the_evidence(images: Any) -> None:
    found = metrics(0.0, images, samples=3)
    assert found["elbo"] == pytest.approx(evidence(images), rel=1e-5)
    assert found["nll"] == pytest.approx(-evidence(images), rel=1e-5)


def test_with_a_wide_posterior_the_bound_is_loose_and_importance_weights_make_up_for_it(images: Any) -> None:
    found = metrics(1.0, images, samples=400)
    assert found["elbo"] < evidence(images) - 0.2
    assert found["nll"] == pytest.approx(-evidence(images), abs=0.02)


def test_the_bound_and_reconstructions_are_the_same_however_sharply_is_drawn(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    found, drawn = [], []
    for sharpness in (1.0, 3.0):
        settings = {"width": 4, "latent": LATENT, "sharpness": sharpness}
        folder = write_untrained(tmp_path / "models" / f"of-{sharpness:g}", "cvae", ImageShape(8, 8, 1, 0), **settings)
        sampler = Sampler.load(folder, tmp_path)
        vae = TrainedVae.load(sampler, folder, tmp_path)
        assert vae is not None
        found.append(likelihood_metrics(vae, images, None, 3, 0, Ranks()))
        found[-1]["decoded"] = float(vae.decode(vae.encode(images, None), None).astype(int).sum())
        drawn.append(sampler.draw(5, seed=0) / 255)
    assert found[0] == found[1]
    logits = [np.log(images.clip(0.01, 0.99)) - np.log(1 - images.clip(0.01, 0.99)) for images in drawn]
    inside = (drawn[1] > 0.02) & (drawn[1] < 0.98)
    assert inside.any()
    np.testing.assert_allclose(logits[1][inside], 3 * logits[0][inside], atol=0.2)


class OneOf(Ranks):
    """A rank whose exchanges with the others are kept here."""

    def __init__(self, rank: int, others: list[Any]) -> None:
        super().__init__(rank, world_size=len(others))
        self.others = others

    def __setattr__(self, name: str, value: Any) -> None:  # `Ranks` is frozen
        object.__setattr__(self, name, value)

    def gather(self, value: Any) -> list[Any]:
        self.others[self.rank] = value
        return self.others


class Largest(TorchFunctionMode):
    """How many numbers the largest tensor has that an operation gives within it."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def random_vae(shape: ImageShape, **changes: Any) -> TrainedVae:
    recipe = MODELS["dense-vae"].recipe.model_copy(update={"latent": LATENT, "width": 8} | changes)
    torch.manual_seed(0)
    vae = TrainedVae.__new__(TrainedVae)
    vae.device, vae.recipe, vae.likelihood = torch.device("cpu"), recipe, build_likelihood(recipe)  # type: ignore[assignment]
    networks = build_networks("dense-vae", recipe, shape)
    vae.encoder, vae.decoder = networks["encoder"].eval(), networks["decoder"].eval()
    return vae


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of 4 images of 16 values, of which 3 latents each are decoded at once."""
    monkeypatch.setattr(likelihood, "BATCH", 4)
    monkeypatch.setattr(likelihood, "VALUES", 3 * 4 * 16)
    return


@pytest.mark.usefixtures("few_at_once")
def test_latents_decoded_some_at_once_give_what_they_give_one_by_one_in_float64() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
    vae, samples = random_vae(ImageShape(4, 4, 1, 0)), 7
    found = likelihood_metrics(vae, images, None, samples, 5, Ranks())

    generator = torch.Generator().manual_seed(5)
    logarithms, squares = [], []
    for start in range(0, 10, 4):
        grey = torch.from_numpy(images[start : start + 4]).permute(0, 3, 1, 2) / 255
        pixels = (grey > torch.rand(grey.shape, generator=generator)).double()
        noise = torch.cat([torch.randn(k, len(grey), LATENT, generator=generator) for k in batches(samples, len(grey))])
        mean, log_variance = (part.double() for part in vae.encoder(pixels.float(), None))
        posterior = Normal(mean, (0.5 * log_variance).exp())
        of_latents = []
        for one in noise.double():
            latents = mean + posterior.stddev * one
            nats = Bernoulli(logits=vae.decoder(latents.float(), None).double()).log_prob(pixels).sum((1, 2, 3))
            of_latents.append(nats + (Normal(0, 1).log_prob(latents) - posterior.log_prob(latents)).sum(1))
        logarithms.append(torch.stack(of_latents))
        squares.append((torch.sigmoid(vae.decoder(mean.float(), None).detach()) - pixels).square().mean((1, 2, 3)))
    weights = torch.cat(logarithms, dim=1).detach()
    assert found["elbo"] == pytest.approx(float(weights[0].mean()), rel=1e-6)
    assert found["nll"] == pytest.approx(-float(weights.exp().mean(0).log().mean()), rel=1e-6)
    assert found["reconstruction_mse"] == pytest.approx(float(torch.cat(squares).mean()), rel=1e-6)
    assert found.keys() == {"elbo", "nll", "reconstruction_mse"}


def batches(samples: int, images: int) -> list[int]:
    at_once = 3 * 4 // images
    return [min(at_once, samples - start) for start in range(0, samples, at_once)]


@pytest.mark.usefixtures("few_at_once")
def test_memory_does_not_grow_with_the_number_of_latents() -> None:
    images, numbers = np.zeros((4, 4, 4, 1), dtype=np.uint8), []
    for samples in (3, 200):
        with Largest() as largest:
            likelihood_metrics(random_vae(ImageShape(4, 4, 1, 0)), images, None, samples, 0, Ranks())
        numbers.append(largest.numbers)
    assert numbers[0] == numbers[1] < 200 * len(images)


@pytest.mark.usefixtures("few_at_once")
def test_ranks_that_share_the_images_get_what_one_gets_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 1), dtype=np.uint8)
    vae, others, drawn = random_vae(ImageShape(4, 4, 1, 0)), list[Any]([[], [], []]), list[int]()
    alone = likelihood_metrics(vae, images, None, 7, 0, Ranks())
    vae.encoder.register_forward_hook(lambda module, inputs, output: drawn.append(len(inputs[0])))
    for rank in range(3):
        try:
            last = likelihood_metrics(vae, images, None, 7, 0, OneOf(rank, others))
        except IndexError:  # the ranks after it have not yet given theirs
            assert rank < 2
    assert last == alone
    assert sum(drawn) == 22


def test_bits_per_dimension_are_of_likelihoods_of_the_256_levels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    vae = random_vae(ImageShape(4, 4, 3, 0), likelihood="logistic", dynamic_binarisation=False)
    found = likelihood_metrics(vae, images, None, 2, 0, Ranks())
    assert found["bits_per_dimension"] == pytest.approx(found["nll"] / math.log(2) / (4 * 4 * 3))
    assert 6 < found["bits_per_dimension"] < 12  # noise has 8

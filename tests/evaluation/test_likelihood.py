"""A VAE whose likelihood is known: x = z in each of two pixels, with noise, so that the evidence has a formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atelier.evaluation.likelihood import likelihood_metrics
from atelier.models.likelihood import Gaussian

VARIANCE = 0.5


class LinearVae:
    """z ~ N(0, 1), x = (z, z) + noise of VARIANCE; `encoder` is the exact posterior, made wider by `excess`."""

    def __init__(self, excess: float) -> None:
        self.device = torch.device("cpu")
        self.likelihood = Gaussian()
        self.likelihood.log_variance.data.fill_(math.log(VARIANCE))
        self.likelihood.mean = lambda output: output  # type: ignore[method-assign]
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
    return likelihood_metrics(LinearVae(excess), images, None, samples, seed=0)  # type: ignore[arg-type]


def test_with_the_exact_posterior_both_are_the_evidence(images: Any) -> None:
    found = metrics(0.0, images, samples=3)
    assert found["elbo"] == pytest.approx(evidence(images), rel=1e-5)
    assert found["nll"] == pytest.approx(-evidence(images), rel=1e-5)


def test_with_a_wide_posterior_the_bound_is_loose_and_importance_weights_make_up_for_it(images: Any) -> None:
    found = metrics(1.0, images, samples=400)
    assert found["elbo"] < evidence(images) - 0.2
    assert found["nll"] == pytest.approx(-evidence(images), abs=0.02)

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atelier.evaluation.kernel import BLOCK, KernelAccumulator, KernelTo, kernel_distance


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def test_agrees_with_torchmetrics_and_torch_fidelity_on_the_same_features(features: Tensor) -> None:
    from torch_fidelity.metric_kid import kernel_mmd
    from torchmetrics.image.kid import poly_mmd

    a, b = features[:300], features[300:600] * 1.2
    ours = kernel_distance(a, b)
    assert ours == pytest.approx(float(poly_mmd(a, b)), rel=1e-6)
    assert ours == pytest.approx(kernel_mmd(a.numpy(), b.numpy()), rel=1e-6)


def test_two_halves_of_one_sample_are_at_zero_within_its_noise(features: Tensor) -> None:
    halves = torch.stack([features[:1000], features[1000:]])
    distances = [kernel_distance(*halves[:, i : i + 200]) for i in range(0, 1000, 200)]
    mean, deviation = torch.tensor(distances).mean(), torch.tensor(distances).std()
    assert abs(float(mean)) < 3 * float(deviation) / 5**0.5
    assert kernel_distance(halves[0], halves[1] + 0.3) > 20 * abs(kernel_distance(halves[0], halves[1]))


def test_streaming_is_the_mean_over_blocks_whatever_the_batches(features: Tensor) -> None:
    real, fakes = features, features.flip(0) * 1.1
    expected = (
        kernel_distance(fakes[:BLOCK], real[:BLOCK]) + kernel_distance(fakes[BLOCK : 2 * BLOCK], real[BLOCK:])
    ) / 2
    for batch in (2000, 130, 7):
        accumulator = KernelAccumulator(KernelTo(real))
        for part in fakes.split(batch):
            accumulator.update(part)
        assert accumulator.distance() == pytest.approx(expected, rel=1e-12)


def test_fewer_fakes_than_a_block_are_taken_as_they_are(features: Tensor) -> None:
    accumulator = KernelAccumulator(KernelTo(features))
    accumulator.update(features[:150] * 2)
    assert accumulator.distance() == pytest.approx(kernel_distance(features[:150] * 2, features[:BLOCK]))

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from atelier.evaluation.distances import (
    BLOCK,
    DistanceTo,
    FrechetAccumulator,
    KernelAccumulator,
    KernelTo,
    Moments,
    MomentsAccumulator,
    frechet_distance,
    kernel_distance,
    pool,
)


def moments(features: Tensor, batch: int = 10_000) -> Moments:
    accumulator = MomentsAccumulator()
    for part in features.split(batch):
        accumulator.update(part)
    return accumulator.moments()


@pytest.fixture
def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    return torch.randn(3000, 24, generator=generator, dtype=torch.float64) @ mixing + 5


def test_distance_to_itself_is_zero(features: Tensor) -> None:
    scale = moments(features).covariance.trace()
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-10 * float(scale))


def test_a_shift_of_the_mean_gives_its_squared_length(features: Tensor) -> None:
    shift = torch.linspace(-1, 1, 24, dtype=torch.float64)
    distance = frechet_distance(moments(features), moments(features + shift))
    assert distance == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_commuting_covariances_give_the_squared_difference_of_the_roots() -> None:
    a, b = torch.rand(2, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    mean = torch.zeros(24, dtype=torch.float64)
    distance = frechet_distance(Moments(9, mean, torch.diag(a)), Moments(9, mean, torch.diag(b)))
    assert distance == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)


def test_streaming_equals_one_batch(features: Tensor) -> None:
    whole, streamed = moments(features), moments(features, batch=7)
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(streamed.covariance, torch.cov(features.T), rtol=1e-10, atol=1e-10)


def test_agrees_with_torchmetrics_on_the_same_features(features: Tensor) -> None:
    class Given(torch.nn.Module):
        num_features = 24

        def forward(self, values: Tensor) -> Tensor:
            return values

    other = features[:2000].flip(1) * 1.1
    theirs = FrechetInceptionDistance(feature=Given(), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(features, real=True)
    theirs.update(other, real=False)
    assert frechet_distance(moments(features), moments(other)) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_agrees_with_torch_fidelity_and_pytorch_fid_on_the_same_features(features: Tensor) -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    other = features[:2000].flip(1) * 1.1
    ours = frechet_distance(moments(features), moments(other))
    theirs = [fid_features_to_statistics(values) for values in (features, other)]
    fidelity = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(fidelity, rel=1e-6)
    statistics = [part for values in theirs for part in (values["mu"], values["sigma"])]
    assert ours == pytest.approx(calculate_frechet_distance(*statistics), rel=1e-6)


def test_parts_pooled_are_the_whole(features: Tensor) -> None:
    whole, parts = moments(features), [moments(part) for part in features.split([100, 900, 2000])]
    pooled = pool(parts)
    assert pooled.count == whole.count
    torch.testing.assert_close(pooled.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(pooled.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


def test_extrapolation_takes_the_bias_of_few_samples_away(features: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    real = moments(torch.randn(200_000, 24, generator=generator, dtype=torch.float64))
    plain, extrapolated = [], []
    for _ in range(5):
        accumulator = FrechetAccumulator(DistanceTo(real))
        for _ in range(8):
            accumulator.update(torch.randn(100, 24, generator=generator, dtype=torch.float64))
        distance, at_infinity = accumulator.distances()
        plain.append(distance)
        extrapolated.append(at_infinity)
    # the true distance is 0, up to the finite number of reals
    assert min(plain) > 0.15
    assert abs(sum(extrapolated) / 5) < 0.1 * sum(plain) / 5


def test_the_accumulated_distance_is_that_of_all_samples(features: Tensor) -> None:
    real, fakes = moments(features), features.flip(1)
    accumulator = FrechetAccumulator(DistanceTo(real))
    for part in fakes.split(90):
        accumulator.update(part)
    assert accumulator.distances()[0] == pytest.approx(frechet_distance(real, moments(fakes)), rel=1e-9)


def test_fewer_samples_than_dimensions_stay_exact() -> None:
    few = torch.randn(10, 64, generator=torch.Generator().manual_seed(2))
    trace = float(moments(few).covariance.trace())
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-7 * trace)  # float32: 4e-4


def test_one_sample_has_no_covariance() -> None:
    accumulator = MomentsAccumulator()
    accumulator.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 samples, have 1"):
        accumulator.moments()


@pytest.fixture
def normal() -> Tensor:
    return torch.randn(2000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def test_kernel_distances_agree_with_torchmetrics_and_torch_fidelity_on_the_same_features(normal: Tensor) -> None:
    from torch_fidelity.metric_kid import kernel_mmd
    from torchmetrics.image.kid import poly_mmd

    a, b = normal[:300], normal[300:600] * 1.2
    ours = kernel_distance(a, b)
    assert ours == pytest.approx(float(poly_mmd(a, b)), rel=1e-6)
    assert ours == pytest.approx(kernel_mmd(a.numpy(), b.numpy()), rel=1e-6)


def test_two_halves_of_one_sample_are_at_zero_within_its_noise(normal: Tensor) -> None:
    halves = torch.stack([normal[:1000], normal[1000:]])
    distances = [kernel_distance(*halves[:, i : i + 200]) for i in range(0, 1000, 200)]
    mean, deviation = torch.tensor(distances).mean(), torch.tensor(distances).std()
    assert abs(float(mean)) < 3 * float(deviation) / 5**0.5
    assert kernel_distance(halves[0], halves[1] + 0.3) > 20 * abs(kernel_distance(halves[0], halves[1]))


def test_a_streamed_kernel_distance_is_the_mean_over_blocks_whatever_the_batches(normal: Tensor) -> None:
    real, fakes = normal, normal.flip(0) * 1.1
    expected = (
        kernel_distance(fakes[:BLOCK], real[:BLOCK]) + kernel_distance(fakes[BLOCK : 2 * BLOCK], real[BLOCK:])
    ) / 2
    for batch in (2000, 130, 7):
        accumulator = KernelAccumulator(KernelTo(real))
        for part in fakes.split(batch):
            accumulator.update(part)
        assert accumulator.distance() == pytest.approx(expected, rel=1e-12)


def test_fewer_fakes_than_a_block_are_taken_as_they_are(normal: Tensor) -> None:
    accumulator = KernelAccumulator(KernelTo(normal))
    accumulator.update(normal[:150] * 2)
    assert accumulator.distance() == pytest.approx(kernel_distance(normal[:150] * 2, normal[:BLOCK]))

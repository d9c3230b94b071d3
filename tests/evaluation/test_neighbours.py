from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from atelier.config import Evaluate
from atelier.data.arrays import PreparedSplit
from atelier.evaluation.evaluator import Features, Sample
from atelier.evaluation.metrics import METRICS
from atelier.evaluation.neighbours import manifold_metrics, nearest_features, nearest_others, nearest_training_images


def normal(count: int, seed: int, dimensions: int = 8) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = normal(400, 0), normal(400, 1) * 0.7
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=5, verbose=False)
    ours = manifold_metrics(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_hand() -> None:
    # reals on a line at 0, 1, ..., 19: with k = 5 the ball of an inner one reaches 3 to either side
    real = torch.arange(20.0)[:, None]
    fake = torch.full((6, 1), 10.0)
    found = manifold_metrics(real, fake)
    inside = [i for i in range(20) if abs(i - 10) <= sorted(abs(i - j) for j in range(20) if j != i)[4]]
    assert found["density"] == pytest.approx(len(inside) / 5)
    assert found["coverage"] == pytest.approx(len(inside) / 20)


def test_the_same_distribution_has_all_and_its_half_lacks_recall() -> None:
    real = normal(1500, 0, 4)
    same = manifold_metrics(real, normal(1500, 1, 4))
    half = normal(4000, 2, 4)
    half = half[half[:, 0] > 0][:1500]
    halved = manifold_metrics(real, half)
    assert same["precision"] > 0.9
    assert same["recall"] > 0.9
    assert same["density"] == pytest.approx(1, abs=0.1)
    assert halved["precision"] > 0.9
    assert halved["recall"] < 0.7
    assert halved["coverage"] < 0.7


def test_rows_at_a_time_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(300, 0), normal(300, 1)
    whole = manifold_metrics(real, fake)
    monkeypatch.setattr("atelier.evaluation.neighbours.ROWS", 7)
    assert manifold_metrics(real, fake) == whole


def images(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_a_copy_is_at_zero_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.evaluation.neighbours.BLOCK", 11)
    train = images(50, 0)
    found = nearest_training_images(train[[40, 3]], train, 3)
    assert found.distances[:, 0].tolist() == [0, 0]
    assert found.indices[:, 0].tolist() == [40, 3]


def test_nearest_first_and_equal_to_a_search_by_hand() -> None:
    train, wanted = images(30, 0), images(4, 1)
    by_hand = np.sqrt(np.mean((wanted[:, None] / 255 - train[None] / 255) ** 2, axis=(2, 3, 4)))
    found = nearest_training_images(wanted, train, 5)
    np.testing.assert_array_equal(found.indices, np.argsort(by_hand, axis=1)[:, :5])
    np.testing.assert_allclose(found.distances, np.sort(by_hand, axis=1)[:, :5], rtol=1e-12)


@pytest.mark.parametrize("block", [7, 5000])
def test_nearest_others_and_features_are_scikit_learns(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr("atelier.evaluation.neighbours.BLOCK", block)
    wanted = images(40, 0)
    wanted[[5, 6]] = wanted[20]
    flat = wanted.reshape(40, -1) / 255
    distances, _ = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(flat).kneighbors(flat)
    found = nearest_others(wanted)
    np.testing.assert_allclose(found, distances[:, 1] / np.sqrt(flat.shape[1]), rtol=1e-6, atol=1e-9)
    assert np.flatnonzero(found == 0).tolist() == [5, 6, 20]
    features, among = normal(30, 0), normal(50, 1)
    distances, _ = NearestNeighbors(n_neighbors=1).fit(among).kneighbors(features)
    np.testing.assert_allclose(nearest_features(features, among), distances[:, 0], rtol=1e-9)


def repeated(fakes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], samples: int = 200) -> tuple[float, float]:
    sample = Sample([], fakes, None, Evaluate(repeat_samples=samples), 0, PreparedSplit(images(200, 1), None))
    kinds = METRICS["repeats"], METRICS["nearest_fake_ratio"]
    share, ratio = (kind.measure(sample, cast("Features", None)) for kind in kinds)
    assert share is not None
    assert ratio is not None
    return share, ratio


def test_a_generator_that_draws_the_same_images_again_is_found() -> None:
    share, ratio = repeated(images(200, 0))
    assert share == 0
    assert ratio == pytest.approx(1, abs=0.05)
    few = images(200, 0)
    few[150:] = np.clip(few[:50].astype(int) + 1, 0, 255)  # all but the same
    share, ratio = repeated(few)
    assert share == 0.5
    assert repeated(few, 100) == (0, pytest.approx(1, abs=0.05))  # no two among the first hundred
    share, ratio = repeated(np.resize(images(90, 0), (200, 8, 8, 1)))
    assert share == 1
    assert ratio == 0

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atelier.evaluation.manifold import manifold_figures


def normal(count: int, seed: int, dimensions: int = 8) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = normal(400, 0), normal(400, 1) * 0.7
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=5, verbose=False)
    ours = manifold_figures(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_hand() -> None:
    # reals on a line at 0, 1, ..., 19: with k = 5 the ball of an inner one reaches 3 to either side
    real = torch.arange(20.0)[:, None]
    fake = torch.full((6, 1), 10.0)
    figures = manifold_figures(real, fake)
    inside = [i for i in range(20) if abs(i - 10) <= sorted(abs(i - j) for j in range(20) if j != i)[4]]
    assert figures["density"] == pytest.approx(len(inside) / 5)
    assert figures["coverage"] == pytest.approx(len(inside) / 20)


def test_the_same_distribution_has_all_and_its_half_lacks_recall() -> None:
    real = normal(1500, 0, 4)
    same = manifold_figures(real, normal(1500, 1, 4))
    half = normal(4000, 2, 4)
    half = half[half[:, 0] > 0][:1500]
    halved = manifold_figures(real, half)
    assert same["precision"] > 0.9
    assert same["recall"] > 0.9
    assert same["density"] == pytest.approx(1, abs=0.1)
    assert halved["precision"] > 0.9
    assert halved["recall"] < 0.7
    assert halved["coverage"] < 0.7


def test_rows_at_a_time_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(300, 0), normal(300, 1)
    whole = manifold_figures(real, fake)
    monkeypatch.setattr("atelier.evaluation.manifold.ROWS", 7)
    assert manifold_figures(real, fake) == whole

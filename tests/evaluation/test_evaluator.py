"""What is asked of a conditional model when it is judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atelier.errors import AtelierError
from atelier.evaluation.evaluator import labels_like, over_draws


def test_classes_are_asked_for_as_often_as_they_are_real_in_any_first_part() -> None:
    real = np.repeat([0, 1, 3], [500, 100, 400])  # no image of class 2
    asked = labels_like(real, 4, 10_000)
    for count in (100, 2500, 10_000):
        assert np.abs(np.bincount(asked[:count], minlength=4) - count * np.array([0.5, 0.1, 0, 0.4])).max() <= 4
    assert np.bincount(asked, minlength=4)[2] == 0


def test_more_fakes_go_on_where_fewer_stopped() -> None:
    real = np.arange(10)
    assert (labels_like(real, 10, 1000)[:300] == labels_like(real, 10, 300)).all()


def test_a_value_that_is_not_finite_is_no_metric() -> None:
    with pytest.raises(AtelierError, match=r"^nll: is not finite"):
        over_draws([{"nll": 1.0}, {"nll": math.inf}])

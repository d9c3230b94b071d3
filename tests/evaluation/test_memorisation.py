from __future__ import annotations

import numpy as np
import pytest

from atelier.evaluation.memorisation import nearest_training_images


def images(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_a_copy_is_at_zero_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.evaluation.memorisation.BLOCK", 11)
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

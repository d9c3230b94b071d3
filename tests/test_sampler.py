from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from atelier.errors import AtelierError, InputError
from atelier.sampler import Sampler, to_uint8


@pytest.mark.parametrize("run", ["mnist-cgan", "mnist-cvae"])
def test_an_image_depends_on_its_seed_place_and_label_alone(trained: Path, run: str) -> None:
    sampler = Sampler.load(trained / "models" / run)
    many, few = sampler.draw(230, seed=3), sampler.draw(7, seed=3)
    assert many.shape == (230, 28, 28, 1)
    assert many.dtype == np.uint8
    assert (many[:7] == few).all()
    assert not (sampler.draw(7, seed=4) == few).all()
    assert not (sampler.draw(7, seed=3, labels=np.full(7, 9)) == few).all()
    assert len(np.unique(many.reshape(230, -1), axis=0)) == 230
    for first, count in ((17, 1), (99, 2), (100, 130), (205, 25)):
        assert (sampler.draw(count, seed=3, first=first) == many[first : first + count]).all()


def test_labels_go_through_the_classes_or_stay_as_asked(trained: Path) -> None:
    sampler = Sampler.load(trained / "models" / "mnist-cgan")
    assert sampler.labels(12, None).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # type: ignore[union-attr]
    assert sampler.labels(3, 7).tolist() == [7, 7, 7]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="label 10: 'mnist-cgan' knows 0 to 9"):
        sampler.labels(1, 10)


def test_altered_weights_and_foreign_folders_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = trained / "models" / "mnist-cgan"
    weights = folder / "sampler.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(AtelierError, match=r"sampler\.safetensors: altered"):
        Sampler.load(folder)
    weights.write_bytes(good)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": "other"}))
    with pytest.raises(AtelierError, match="not the config of a model: model: this atelier has no 'other'"):
        Sampler.load(folder)
    with pytest.raises(InputError, match=r"config\.json: missing"):
        Sampler.load(tmp_path / "data")


def test_values_are_scaled_rounded_and_clipped() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]).reshape(6, 1, 1, 1)
    assert to_uint8(images, "symmetric").ravel().tolist() == [0, 0, 128, 191, 255, 255]
    assert to_uint8(images, "unit").ravel().tolist() == [0, 0, 0, 128, 255, 255]

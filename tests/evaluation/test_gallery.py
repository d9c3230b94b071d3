from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.config import load_params
from atelier.config.records import Gallery
from atelier.errors import AtelierError
from atelier.evaluation.compare import compare
from atelier.evaluation.gallery import project
from atelier.files import read_json, write_json
from atelier.mark import read_mark
from atelier.pictures import webp_bytes


def test_a_gallery_has_real_images_samples_and_what_is_near_to_them(judged_workspace: Path) -> None:
    folder = judged_workspace / "reports/mnist-cvae/gallery"
    gallery = Gallery.read(folder / "gallery.json", "atelier evaluate")
    assert [one.index for one in gallery.drawn] == list(range(50))  # as many as are compared with training images
    train = np.load(judged_workspace / "data/prepared/mnist/train-images.npy")
    with Image.open(folder / "nearest.webp") as nearest, Image.open(folder / "drawn.webp") as drawn:
        near, samples = np.asarray(nearest)[..., 0], np.asarray(drawn)[..., 0]
    for number, one in enumerate(gallery.drawn):
        of_sample = cut(samples, number, gallery.columns)
        for place, (index, distance) in enumerate(zip(one.nearest, one.distances, strict=True)):
            assert (cut(near, 3 * number + place, gallery.columns) == train[index, ..., 0]).all()
            measured = np.sqrt(np.mean((of_sample / 255 - train[index, ..., 0] / 255) ** 2))
            assert measured == pytest.approx(distance, abs=1e-5)
    mark = read_mark(folder / "drawn.webp")
    assert mark is not None
    assert (mark.run, mark.seed) == ("mnist-cvae", gallery.seed)
    assert read_mark(folder / "real.webp") is None
    assert not any(gallery.is_copy(one) for one in gallery.drawn)
    with Image.open(folder / "real.webp") as real:
        shown = np.asarray(real)[..., 0]
    test = np.load(judged_workspace / "data/prepared/mnist/test-images.npy")[..., 0]
    labels = np.load(judged_workspace / "data/prepared/mnist/test-labels.npy")
    known = {image.tobytes(): int(label) for image, label in zip(test, labels, strict=True)}
    assert len(gallery.real) == 300
    assert [known[cut(shown, number, 20).tobytes()] for number in range(300)] == [one.label for one in gallery.real]


def cut(picture: Any, number: int, columns: int) -> Any:
    row, column = divmod(number, columns)
    return np.ascontiguousarray(picture[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28])


def test_the_map_has_the_axes_along_which_real_images_differ_most() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(500, 5, generator=generator) * torch.tensor([0.1, 3.0, 0.1, 1.0, 0.1]) + 7
    of_drawn, of_real, explained = project(real[:3], real)
    assert (of_drawn == of_real[:3]).all()
    assert np.corrcoef(of_real[:, 0], real[:, 1])[0, 1] > 0.999
    assert np.corrcoef(of_real[:, 1], real[:, 3])[0, 1] > 0.99
    assert of_real[:, 0].std() == pytest.approx(1, abs=0.01)
    assert explained[0] == pytest.approx(0.9, abs=0.03)
    assert sum(explained) == pytest.approx(1, abs=0.02)


def test_without_features_there_is_no_map() -> None:
    of_drawn, of_real, explained = project(torch.empty(0, 0), torch.ones(3, 2))
    assert (len(of_drawn), len(of_real), explained) == (0, 0, [])


@pytest.mark.parametrize(
    ("shape", "size"), [((25, 28, 28, 1), (560, 56)), ((3, 64, 32, 3), (640, 64)), ((41, 256, 512, 3), (2560, 192))]
)
def test_sheets_have_rows_of_twenty_and_small_pictures(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(webp_bytes(np.full(shape, 200, np.uint8), 20))) as picture:
        assert picture.size == size


def more_neighbours(gallery: dict[str, Any]) -> None:
    gallery["drawn"][0]["nearest"].append(1)


def no_place(gallery: dict[str, Any]) -> None:
    gallery["real"][0]["place"] = ["<img src=x>", 0]


def endless(gallery: dict[str, Any]) -> None:
    gallery["nearest_of_test"] = 10**400


@pytest.mark.parametrize("damage", [more_neighbours, no_place, endless])
def test_a_damaged_gallery_is_one_line(trained: Path, damage: Any) -> None:
    for run in ("mnist-cgan", "mnist-cvae"):
        sha256 = "a" * 64
        write_json(
            trained / f"registry/{run}.json",
            {"format": 1, "name": run, "weights_sha256": sha256, "report_sha256": sha256},
        )
    path = trained / "reports/mnist-cgan/gallery/gallery.json"
    gallery = read_json(path)
    damage(gallery)
    write_json(path, gallery)
    with pytest.raises(AtelierError, match=r"gallery\.json: not the gallery of a report: ") as raised:
        compare(load_params(trained / "params.yaml"), trained, lambda line: None)
    assert "\n" not in str(raised.value)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.config import load_params
from atelier.data.arrays import encode_idx, open_split, read_card
from atelier.data.prepare import prepare
from atelier.errors import AtelierError, InputError
from atelier.files import digest

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def test_arrays_hold_the_raw_pixels_and_the_card_describes_them(full_mnist: Path) -> None:
    card = read_card(full_mnist, "mnist")
    for split, count in (("train", 60_000), ("test", 10_000)):
        prepared = open_split(full_mnist, "mnist", split)  # type: ignore[arg-type]
        raw = (full_mnist / "data" / "raw" / "mnist" / f"{split}-images.idx").read_bytes()
        assert prepared.images.shape == (count, 28, 28, 1)
        images = np.asarray(prepared.images)
        assert images.tobytes() == raw[16:]
        assert prepared.labels is not None
        described = card.splits[split]
        assert described.by_class == np.bincount(prepared.labels).tolist()
        assert described.mean == pytest.approx([float(images.mean())], abs=1e-4)
        assert described.deviation == pytest.approx([float(images.std())], abs=1e-4)
        folder = full_mnist / "data" / "prepared" / "mnist"
        assert described.images_sha256 == digest(folder / f"{split}-images.npy")
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.size == (12 * 30 + 2, 10 * 30 + 2)


def test_preparing_again_gives_the_same_bytes(full_mnist: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "mnist").symlink_to(full_mnist / "data" / "raw" / "mnist")
    again = prepare("mnist", PARAMS, tmp_path)
    for path in again.iterdir():
        assert path.read_bytes() == (full_mnist / "data" / "prepared" / "mnist" / path.name).read_bytes(), path.name


def test_missing_raw_files_say_which_command_makes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run 'atelier ingest mnist' first"):
        prepare("mnist", PARAMS, tmp_path)
    assert not list((tmp_path / "data" / "prepared").iterdir())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 28, 27), np.uint8), np.zeros(2, np.uint8), r"images are \(28, 27, 1\)"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8), "2 train images and 3 labels"),
        (np.zeros((2, 28, 28), np.uint8), np.full(2, 10, np.uint8), "label 10 names no class"),
    ],
)
def test_raw_files_that_contradict_the_catalogue(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    raw = tmp_path / "data" / "raw" / "mnist"
    raw.mkdir(parents=True)
    for split in ("train", "test"):
        (raw / f"{split}-images.idx").write_bytes(encode_idx(images))
        (raw / f"{split}-labels.idx").write_bytes(encode_idx(labels))
    with pytest.raises(AtelierError, match=message):
        prepare("mnist", PARAMS, tmp_path)

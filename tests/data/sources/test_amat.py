"""The published split of binarised MNIST, as files made here of its form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atelier.data.arrays import open_split
from atelier.data.sources import amat
from atelier.errors import AtelierError
from atelier.files import folder_digest
from own_pictures import card_of, make, tar_of

SETTINGS = "{side: 28, channels: 1, split: folders}"
COUNTS = {"train": 12, "valid": 5, "test": 4}


def bits_of(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.random.default_rng(len(name)).random((COUNTS[name], 784)) < 0.3


def write(folder: Path, edit: Callable[[str], str] = lambda text: text) -> Path:
    """The three files; `edit` changes the one of the test images."""
    folder.mkdir()
    for name in COUNTS:
        text = "".join(" ".join(str(int(bit)) for bit in line) + "\n" for line in bits_of(name))
        path = folder / f"binarized_mnist_{name}.amat"
        path.write_text(edit(text) if name == "test" else text)
    return folder


def test_the_published_split_is_kept_in_its_order(tmp_path: Path) -> None:
    source = write(tmp_path / "source")
    card = card_of(tmp_path / "root", source, SETTINGS)
    assert [card.splits[split].images for split in ("train", "test")] == [17, 4]
    for split, files in (("train", ("train", "valid")), ("test", ("test",))):
        images = np.asarray(open_split(tmp_path / "root", "own", split).images)  # type: ignore[arg-type]
        expected = np.concatenate([bits_of(name) for name in files])
        np.testing.assert_array_equal(images.reshape(-1, 784), expected * np.uint8(255))


def test_an_archive_and_other_line_ends_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "source")
    archive = tar_of(folder, tmp_path / "packed.tar.gz")
    windows = write(tmp_path / "windows", lambda text: text.replace("\n", " \r\n"))
    digests = set()
    for number, source in enumerate((folder, archive, windows)):
        make(tmp_path / str(number), source, SETTINGS)
        digests.add(folder_digest(tmp_path / str(number) / "data"))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[:-3],  # cut off
        lambda text: text.replace("\n", " 7\n"),  # with labels
        lambda text: text[:-2] + "2\n",
        lambda text: text.replace("0", "0.5", 1),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "\0" * 2000,
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path: Path, edit: Callable[[str], str]) -> None:
    source = write(tmp_path / "source", edit)
    with pytest.raises(AtelierError, match=r"binarized_mnist_test.amat': line \d is not 784 numbers that are 0 or 1"):
        make(tmp_path / "root", source, SETTINGS)
    assert not (tmp_path / "root/data/raw/own").exists()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amat, "LIMIT_BYTES", 1000)
    with pytest.raises(AtelierError, match="not the published file"):
        make(tmp_path / "root", write(tmp_path / "source"), SETTINGS)

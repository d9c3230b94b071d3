"""The prepared form of a data set: uint8 arrays that are memory-mapped, int64 labels, and a card."""

import hashlib
import io
import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from atelier.config.records import DataCard, SplitCard
from atelier.errors import AtelierError, InputError
from atelier.files import digest, files_below

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class PreparedSplit:
    """One split: images uint8 (n, height, width, channels), memory-mapped; labels int64 (n,) or None."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None


def prepared_folder(root: Path, dataset: str) -> Path:
    """Where the prepared form of a data set lies."""
    return root / "data" / "prepared" / dataset


def read_card(root: Path, dataset: str) -> DataCard:
    """Read the card of a prepared data set: source, digests, counts, statistics."""
    return DataCard.read(prepared_folder(root, dataset) / "card.json", f"atelier prepare {dataset}")


def open_split(root: Path, dataset: str, split: Split) -> PreparedSplit:
    """Open one split without reading its images into memory, after comparing its files with the card.

    Raises:
        InputError: if it is not there.
        AtelierError: if it is damaged, or not what the card says.
    """
    card, folder = read_card(root, dataset), prepared_folder(root, dataset)
    said = card.splits[split]
    for what, sha256 in (("images", said.images_sha256), ("labels", said.labels_sha256)):
        path = folder / f"{split}-{what}.npy"
        if path.is_file() and digest(path) != sha256:
            raise AtelierError(
                f"{path}: altered, its sha256 is not the one on the card; run 'atelier prepare {dataset}' again"
            )
    opened = _open(folder, dataset, split)
    if opened.images.shape != (said.images, card.height, card.width, card.channels):
        raise AtelierError(
            f"{folder / 'card.json'}: does not fit {split}-images.npy; run 'atelier prepare {dataset}' again"
        )
    if (opened.labels is None) != (said.labels_sha256 is None) or (
        opened.labels is not None and opened.labels.max(initial=0) >= len(card.class_names)
    ):
        raise AtelierError(
            f"{folder / 'card.json'}: does not fit {split}-labels.npy; run 'atelier prepare {dataset}' again"
        )
    return opened


def validation_places(images: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.bool_]:
    """Which of the images (n, h, w, c) are kept for validation: those whose digest lies in the first `share` of all.

    Content alone decides: duplicates stay together, and neither order nor other images move an image across. It is
    another digest than the one that test images of one's own are chosen by, which none of these has a small one of.
    """
    limit = int(share * 2**64)
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8, person=b"validation").digest() for image in images)
    return np.fromiter((int.from_bytes(one, "big") < limit for one in digests), np.bool_, len(images))


def _open(folder: Path, dataset: str, split: Split) -> PreparedSplit:
    images = _open_array(folder / f"{split}-images.npy", dataset, np.uint8, dimensions=4)
    if not (path := folder / f"{split}-labels.npy").is_file():
        return PreparedSplit(images, None)
    labels = np.array(_open_array(path, dataset, np.int64, dimensions=1))
    if len(labels) != len(images) or labels.min(initial=0) < 0:
        raise AtelierError(f"{path}: damaged, not a label for each image; run 'atelier prepare {dataset}' again")
    return PreparedSplit(images, labels)


def _open_array(path: Path, dataset: str, dtype: type, dimensions: int) -> npt.NDArray[Any]:
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier prepare {dataset}' first")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except Exception as error:  # ValueError, EOFError, SyntaxError, TypeError, OverflowError and more
        raise AtelierError(
            f"{path}: damaged, not an array ({str(error)[:100]}); run 'atelier prepare {dataset}' again"
        ) from None
    if getattr(array, "dtype", None) != dtype or array.ndim != dimensions:
        raise AtelierError(f"{path}: damaged, another kind of array; run 'atelier prepare {dataset}' again")
    return array


def encode_idx(array: npt.NDArray[np.uint8]) -> bytes:
    """IDX bytes of an array of unsigned bytes: magic number, sizes (big-endian), then the values."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def read_idx(path: Path, dataset: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, read only.

    Raises:
        InputError: if it is not there.
        AtelierError: if it is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier ingest {dataset}' first")
    content, header = path.read_bytes(), 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(shape):
        raise AtelierError(
            f"{path}: damaged, not an IDX file of {dimensions} dimensions; run 'atelier ingest {dataset}' again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


class SplitWriter:
    """Writes one split piece by piece, in constant memory, and describes what it wrote."""

    def __init__(self, folder: Path, split: Split, shape: tuple[int, int, int], classes: int) -> None:
        self.folder, self.split, self.shape, self.classes = folder, split, shape, classes
        self.path = folder / f"{split}-images.npy"
        self.file = self.path.open("wb")
        self.count = 0
        self.labels = array("q")
        self.histogram = np.zeros((shape[-1], 256), dtype=np.int64)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for a first dimension that grows
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, images: npt.NDArray[np.uint8], labels: npt.ArrayLike) -> None:
        """Append images (n, h, w, c) and their labels (n,); without classes the labels are not looked at."""
        self.file.write(np.ascontiguousarray(images).data)
        self.count += len(images)
        if len(images):
            from PIL import Image

            # one tall picture: Pillow counts its levels several times as fast as NumPy
            tall = Image.fromarray(images.reshape(-1, *self.shape[1:]).squeeze(axis=-1 if self.shape[-1] == 1 else ()))
            self.histogram += np.array(tall.histogram()).reshape(-1, 256)
        if self.classes:
            self.labels.extend(np.asarray(labels, dtype=np.int64).tolist())

    def close(self) -> SplitCard:
        """Finish the files and return counts, digests and statistics."""
        self._write_header()
        self.file.close()
        labels_path = self.folder / f"{self.split}-labels.npy"
        by_class = None
        if self.classes:
            labels = np.asarray(self.labels, dtype=np.int64)
            buffer = io.BytesIO()
            np.save(buffer, labels)  # to a file it would not say why it fails
            labels_path.write_bytes(buffer.getvalue())
            by_class = np.bincount(labels, minlength=self.classes).tolist()
        values, pixels = np.arange(256), np.maximum(self.histogram.sum(axis=1), 1)
        mean = self.histogram @ values / pixels
        deviation = np.sqrt(np.maximum(self.histogram @ values**2 / pixels - mean**2, 0))
        return SplitCard(
            images=self.count,
            by_class=by_class,
            mean=[round(float(value), 6) for value in mean],
            deviation=[round(float(value), 6) for value in deviation],
            images_sha256=digest(self.path),
            labels_sha256=digest(labels_path) if self.classes else None,
        )


def dvc_md5(folder: Path) -> str:
    """The digest by which DVC knows a folder, computed anew: right whether or not dvc.lock is up to date."""
    entries = [
        {"md5": digest(path, "md5"), "relpath": path.relative_to(folder).as_posix()} for path in files_below(folder)
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


@dataclass
class Found:
    """How many files and images were looked at, and each problem in one line."""

    files: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)


def check(dataset: str, root: Path) -> Found:
    """Verify every file that the card names, and that the arrays are what it says.

    Raises:
        InputError: if there is no card.
        AtelierError: if the card itself cannot be read.
    """
    found = Found()
    raw, prepared = root / "data" / "raw" / dataset, prepared_folder(root, dataset)
    card = read_card(root, dataset)
    expected = {raw / name: sha256 for name, sha256 in card.raw_sha256.items()}
    expected[prepared / "contact-sheet.png"] = card.contact_sheet_sha256
    for split in SPLITS:
        expected[prepared / f"{split}-images.npy"] = card.splits[split].images_sha256
        if sha256 := card.splits[split].labels_sha256:
            expected[prepared / f"{split}-labels.npy"] = sha256
    for path, sha256 in expected.items():
        found.files += 1
        if not path.is_file():
            found.problems.append(f"{path}: missing")
        elif digest(path) != sha256:
            found.problems.append(f"{path}: altered, its sha256 is not the one on the card")
    present = {path for folder in (raw, prepared) for path in files_below(folder)}
    strangers = present - expected.keys() - {prepared / "card.json"}
    found.problems += [f"{path}: not on the card" for path in sorted(strangers)]
    if not found.problems:
        for split in SPLITS:
            found.images += _check_split(dataset, root, card, split, found.problems)
    return found


def _check_split(dataset: str, root: Path, card: DataCard, split: Split, problems: list[str]) -> int:
    """Digests are right: what is left is a card that contradicts the arrays it names."""
    opened, said = _open(prepared_folder(root, dataset), dataset, split), card.splits[split]
    shape = (said.images, card.height, card.width, card.channels)
    where = f"{dataset}: {split}"
    if opened.images.shape != shape:
        problems.append(f"{where}: images are {opened.images.shape}, the card says {shape}")
    if opened.labels is not None:
        by_class = np.bincount(opened.labels, minlength=len(card.class_names)).tolist()
        if by_class != said.by_class:
            problems.append(f"{where}: labels count {by_class}, the card says {said.by_class}")
    return len(opened.images)

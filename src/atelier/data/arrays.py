"""The prepared form of a data set: uint8 arrays that are memory-mapped, int64 labels, and a card."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from atelier.config.records import DataCard, SplitCard
from atelier.errors import InputError
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
    """Open one split without reading it into memory."""
    folder = prepared_folder(root, dataset)
    images, labels = folder / f"{split}-images.npy", folder / f"{split}-labels.npy"
    if not images.is_file():
        raise InputError(f"{images}: missing; run 'atelier prepare {dataset}' first")
    return PreparedSplit(np.load(images, mmap_mode="r"), np.load(labels) if labels.is_file() else None)


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
            np.save(labels_path, labels)
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

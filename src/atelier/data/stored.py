"""Images that lie in files and are read by their places in them.

They are read, not mapped into memory: what is mapped is counted as memory of the process, a page that has to come from
the disk holds up all its threads, and a file that is cut meanwhile ends it without a word.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atelier.errors import AtelierError
from atelier.pictures import Images

CHANGED = "{path}: was changed while it was read; give the same command again"


@dataclass(frozen=True)
class StoredFile:
    """Images one after another in a file, from `offset` bytes on; `stamp` tells it from one that takes its name."""

    path: Path
    offset: int
    images: int
    stamp: tuple[int, int]


def stamp_of(found: os.stat_result) -> tuple[int, int]:
    """Inode and time of writing: an inode alone may be used again."""
    return found.st_ino, found.st_mtime_ns


class StoredImages:
    """uint8 images (n, height, width, channels) in one file or several: as an array that is only read from.

    A slice, places (k,) or a mask (n,) give an array of those images, a number gives one image.

    Args:
        files: in the order of the images.
        shape: of an image.
    """

    def __init__(self, files: Sequence[StoredFile], shape: tuple[int, int, int]) -> None:
        self.files = files
        self.ends = np.cumsum([file.images for file in files])
        self.shape = (int(self.ends[-1]), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Images]:
        return (self[place] for place in range(len(self)))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or np.uint8, copy=False)

    def __getitem__(self, wanted: int | slice | npt.ArrayLike) -> Images:
        if isinstance(wanted, int | np.integer):
            image: Images = self[[range(len(self))[wanted]]][0]
            return image
        places = np.arange(*wanted.indices(len(self))) if isinstance(wanted, slice) else np.asarray(wanted)
        if places.dtype == np.bool_:
            places = np.flatnonzero(places)
        images = np.empty((len(places), *self.shape[1:]), np.uint8)
        self.read(places, images)
        return images

    def read(self, places: npt.NDArray[np.int64], target: Images) -> None:
        """Read the images at these places (k,) to `target` (k, height, width, channels).

        Raises:
            IndexError: if one of them lies beyond the last image.
            AtelierError: if a file is no longer what it was when it was opened.
        """
        if not len(places):
            return
        if places.min() < 0 or places.max() >= len(self):
            raise IndexError(f"images 0 to {len(self) - 1}, not {places.min()} to {places.max()}")
        numbers = np.searchsorted(self.ends, places, side="right")  # of their files
        # images that follow each other in a file are one read
        cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(numbers) != 0)) + 1
        runs = [*zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True)]
        runs.sort(key=lambda run: numbers[run[0]])
        size = math.prod(self.shape[1:])
        for number, of_file in itertools.groupby(runs, key=lambda run: int(numbers[run[0]])):
            file = self.files[number]
            first = int(self.ends[number]) - file.images
            descriptor = os.open(file.path, os.O_RDONLY)  # not kept: there may be more files than a process may open
            try:
                if stamp_of(os.fstat(descriptor)) != file.stamp:
                    raise AtelierError(CHANGED.format(path=file.path))
                for start, end in of_file:
                    offset = file.offset + (int(places[start]) - first) * size
                    self._read(descriptor, file.path, target[start:end].reshape(-1).data, offset)
            finally:
                os.close(descriptor)

    def _read(self, descriptor: int, path: Path, target: memoryview, offset: int) -> None:
        while target:
            count = os.preadv(descriptor, [target], offset)
            if not count:
                raise AtelierError(CHANGED.format(path=path))
            target, offset = target[count:], offset + count

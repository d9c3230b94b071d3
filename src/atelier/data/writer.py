"""Writing the images of a split, to one file or to several of bounded size."""

import io
import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier.config.records import Shard, SplitCard, images_file, images_sha256
from atelier.data.arrays import Split
from atelier.files import digest
from atelier.pictures import Images

# The first file of a split holds a small set whole. The others are smaller: pictures that are added to a large set
# change its last file, and a `prepare` that was stopped begins again with the one it was at.
FIRST_FILE_BYTES = 64 << 20
FILE_BYTES = 16 << 20


class SplitWriter:
    """Writes one split piece by piece, in constant memory, and describes what it wrote.

    Args:
        folder: of its files.
        split: which one.
        shape: of an image.
        classes: how many; 0 for images without labels.
        full: files that were written before; their labels are added without images.
        when_full: told each file that will not change any more.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        shape: tuple[int, int, int],
        classes: int,
        full: Sequence[Shard] = (),
        when_full: Callable[[Split, Shard], None] = lambda split, shard: None,
    ) -> None:
        self.folder, self.split, self.shape, self.classes = folder, split, shape, classes
        self.shards = list(full)
        self.when_full = when_full
        self.labels = array("q")
        self.histogram = np.zeros((shape[-1], 256), dtype=np.int64)
        for number in range(len(full)):
            self._count_levels(np.load(folder / images_file(split, number)))
        self._open()

    def _open(self) -> None:
        self.path = self.folder / images_file(self.split, len(self.shards))
        self.file = self.path.open("wb")
        self.count = 0
        self.room = max((FILE_BYTES if self.shards else FIRST_FILE_BYTES) // math.prod(self.shape), 1)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for a first dimension that grows
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, images: Images, labels: npt.ArrayLike) -> None:
        """Append images (n, h, w, c) and their labels (n,); without classes the labels are not looked at."""
        if len(images):
            self._count_levels(images)
        if self.classes:
            self.labels.extend(np.asarray(labels, dtype=np.int64).tolist())
        while len(images):
            if self.count == self.room:
                self._end_file()
                self.when_full(self.split, self.shards[-1])
                self._open()
            part, images = np.split(images, [self.room - self.count])
            self.file.write(np.ascontiguousarray(part).data)
            self.count += len(part)

    def _count_levels(self, images: Images) -> None:
        from PIL import Image

        # one tall picture: Pillow counts its levels several times as fast as NumPy
        tall = Image.fromarray(images.reshape(-1, *self.shape[1:]).squeeze(axis=-1 if self.shape[-1] == 1 else ()))
        self.histogram += np.array(tall.histogram()).reshape(-1, 256)

    def _end_file(self) -> None:
        self._write_header()
        self.file.close()
        # the only one may be empty, which is refused later
        self.shards.append(Shard.model_construct(images=self.count, sha256=digest(self.path)))

    def close(self) -> SplitCard:
        """Finish the files and return counts, digests and statistics."""
        self._end_file()
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
            images=sum(shard.images for shard in self.shards),
            by_class=by_class,
            mean=[round(float(value), 6) for value in mean],
            deviation=[round(float(value), 6) for value in deviation],
            images_sha256=images_sha256([shard.sha256 for shard in self.shards]),
            labels_sha256=digest(labels_path) if self.classes else None,
            shards=self.shards if len(self.shards) > 1 else [],
        )

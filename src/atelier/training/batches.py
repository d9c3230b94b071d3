"""Which images make up each batch, and getting them onto the training device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.data.arrays import PreparedSplit
from atelier.data.stored import StoredImages
from atelier.errors import AtelierError

Places = npt.NDArray[np.int64]

READERS = 4  # threads: they wait for the disk most of the time
AHEAD_BYTES = 64 << 20  # of images that were read and not yet asked for; a batch at least
MOST_AHEAD = 32  # batches


class TrainingImages:
    """The training images on the device, in order or shuffled.

    Sets up to `resident_bytes` lie on the device as uint8; of larger ones only each batch is read, within
    `reading_ahead` by other threads than the one that trains.
    The order of epoch e depends on (seed, e) alone: the position in the stream, in images, is the whole state.

    Args:
        split: that they are of.
        symmetric: whether they are to lie in [-1, 1], not [0, 1].
        seed: of their order.
        device: that they are trained on.
        resident_bytes: as above.
        held_out: which of them are not trained on (n,); None for none.
    """

    def __init__(
        self,
        split: PreparedSplit,
        symmetric: bool,
        seed: int,
        device: torch.device,
        resident_bytes: int,
        held_out: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.split = split
        self.held_out = held_out
        self.places = None if held_out is None else np.flatnonzero(~held_out)
        self.symmetric = symmetric
        self.seed = seed
        self.device = device
        self.count = len(split.images) if self.places is None else len(self.places)
        self.resident: Tensor | None = None
        if split.images.nbytes <= resident_bytes:
            try:
                self.resident = torch.from_numpy(np.array(split.images)).to(device)
            except (MemoryError, torch.OutOfMemoryError):
                raise AtelierError(
                    f"{split.images.nbytes >> 20} MB of images do not fit in memory ({device.type}); set "
                    "train.resident_mb to less, and they are read from disk"
                ) from None
        self.labels = torch.from_numpy(split.labels).to(device) if split.labels is not None else None
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._stride = 0  # images from the beginning of one batch to that of the next, if they are read ahead
        self._next = -1  # where the batch begins that comes next out of `_coming`
        self._coming: Generator[tuple[Places, Tensor]] | None = None

    @contextmanager
    def reading_ahead(self, stride: int) -> Iterator[None]:
        """Within it, batches of one size that begin `stride` images apart are read before they are asked for."""
        self._stride = stride if self.resident is None else 0
        try:
            yield
        finally:
            self._stride = 0
            if self._coming is not None:
                self._coming.close()
                self._coming = None

    def batch(self, position: int, size: int) -> tuple[Tensor, Tensor | None]:
        """Images [position, position + size) of the endless shuffled stream, and their labels."""
        if not self._stride:
            return self._gather(self.order(position, size))
        if self._coming is None or position != self._next:
            if self._coming is not None:
                self._coming.close()
            self._coming = self._read_ahead(self.order(start, size) for start in count(position, self._stride))
        self._next = position + self._stride
        return self._arrived(*next(self._coming))

    def order(self, position: int, size: int) -> Places:
        """Where images [position, position + size) of the endless shuffled stream lie in the file."""
        parts = []
        while size:
            epoch, offset = divmod(position, self.count)
            part = self._order_of(epoch)[offset : offset + size]
            parts.append(part)
            position, size = position + len(part), size - len(part)
        return np.concatenate(parts)

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every training image once, in the order of the file."""
        wanted = (self._placed(np.arange(start, min(start + size, self.count))) for start in range(0, self.count, size))
        if self.resident is not None:
            return (self._gather(places) for places in wanted)
        return (self._arrived(places, images) for places, images in self._read_ahead(wanted))

    def _placed(self, indices: Places) -> Places:
        """Where the images of these numbers lie in the file, of those that are trained on."""
        return indices if self.places is None else self.places[indices]

    def _order_of(self, epoch: int) -> Places:
        if epoch != self._epoch:
            self._order = self._placed(np.random.default_rng((self.seed, epoch)).permutation(self.count))
            self._epoch = epoch
        return self._order

    def _read_ahead(self, wanted: Iterable[Places]) -> Generator[tuple[Places, Tensor]]:
        """Read the images at each of these places in other threads; yields them in turn, not yet on the device."""
        wanted, coming = iter(wanted), deque[tuple[Places, Future[Tensor]]]()
        first = next(wanted)
        size = len(first) * math.prod(self.split.images.shape[1:])
        pool = ThreadPoolExecutor(READERS, "read-ahead")
        try:
            for places in chain([first], wanted):
                coming.append((places, pool.submit(self._read, places)))
                if len(coming) > min(max(AHEAD_BYTES // size, 1), MOST_AHEAD):
                    places, images = coming.popleft()
                    yield places, images.result()
            for places, images in coming:
                yield places, images.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, places: Places) -> Tensor:
        """The images at these places, not yet on the device; from pinned memory they go there without the host."""
        shape = (len(places), *self.split.images.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        if isinstance(self.split.images, StoredImages):
            self.split.images.read(places, images.numpy())
        else:
            images.numpy()[:] = self.split.images[places]
        return images

    def _gather(self, places: Places) -> tuple[Tensor, Tensor | None]:
        if self.resident is not None:
            return self.at(torch.from_numpy(places).to(self.device))
        return self._arrived(places, self._read(places))

    def _arrived(self, places: Places, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images, which were read from these places, and their labels, on the device."""
        index = torch.from_numpy(places).to(self.device)
        return self._scaled(images.to(self.device, non_blocking=True)), self._labels_at(index)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The resident images and labels at places (n,), a tensor on the device."""
        assert self.resident is not None
        return self._scaled(self.resident[index]), self._labels_at(index)

    def _labels_at(self, index: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[index]

    def _scaled(self, images: Tensor) -> Tensor:
        # (n, h, w, c) in memory is (n, c, h, w) in channels_last order: no copy
        scaled = images.permute(0, 3, 1, 2).float().div_(255)
        return scaled.mul_(2).sub_(1) if self.symmetric else scaled

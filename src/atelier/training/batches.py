"""Which images make up each batch, and getting them onto the training device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.data.arrays import PreparedSplit
from atelier.errors import AtelierError


class TrainingImages:
    """The training images on the device, in order or shuffled.

    Sets up to `resident_bytes` lie on the device as uint8; larger ones stay memory-mapped and only each batch is read.
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

    def batch(self, position: int, size: int) -> tuple[Tensor, Tensor | None]:
        """Images [position, position + size) of the endless shuffled stream, and their labels."""
        return self._gather(self.order(position, size))

    def order(self, position: int, size: int) -> npt.NDArray[np.int64]:
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
        for start in range(0, self.count, size):
            yield self._gather(self._placed(np.arange(start, min(start + size, self.count))))

    def _placed(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the images of these numbers lie in the file, of those that are trained on."""
        return indices if self.places is None else self.places[indices]

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            self._order = self._placed(np.random.default_rng((self.seed, epoch)).permutation(self.count))
            self._epoch = epoch
        return self._order

    def _gather(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        index = torch.from_numpy(indices).to(self.device)
        if self.resident is not None:
            return self.at(index)
        return self._scaled(torch.from_numpy(self.split.images[indices]).to(self.device)), self._labels_at(index)

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

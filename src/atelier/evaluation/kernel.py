"""Kernel distance between feature distributions (Bińkowski et al., "Demystifying MMD GANs", 2018), in float64.

Unbiased at any number of samples, unlike the Fréchet distance; so it leads where there are few real images.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1000


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (x·y / d + 1)³."""
    a, b = a.double(), b.double()
    return _within(a) + _within(b) - 2 * float(_kernel(a, b).mean())


def _within(a: Tensor) -> float:
    """Mean kernel of two different samples."""
    kernel = _kernel(a, a)
    return float((kernel.sum() - kernel.trace()) / (len(a) * (len(a) - 1)))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)


class KernelTo:
    """Kernel distances to blocks of the real features (n, d); what a block has in itself is computed once."""

    def __init__(self, real: Tensor) -> None:
        self.size = min(BLOCK, len(real))
        self._blocks = real[: len(real) // self.size * self.size].split(self.size)
        self._within = dict[int, float]()

    def __call__(self, features: Tensor, number: int) -> float:
        """The distance of features (m, d) to the block whose turn it is, the `number`-th."""
        index = number % len(self._blocks)
        real, features = self._blocks[index].double(), features.double()
        if index not in self._within:
            self._within[index] = _within(real)
        return _within(features) + self._within[index] - 2 * float(_kernel(features, real).mean())


class KernelAccumulator:
    """Streams features (n, d) into the mean distance of their blocks to blocks of the real features, each in turn.

    The samples of a stream are independent, so that consecutive blocks are as good as random subsets, and memory does
    not grow with their number. Blocks hold at most `BLOCK` samples, and no more than there are real features.
    """

    def __init__(self, kernel_to: KernelTo) -> None:
        self._kernel_to = kernel_to
        self._pending = list[Tensor]()
        self._count = 0
        self._distances = list[float]()

    def update(self, features: Tensor) -> None:
        """Add features (n, d)."""
        size = self._kernel_to.size
        self._pending.append(features)
        self._count += len(features)
        while self._count >= size:
            everything = torch.cat(self._pending)
            self._add_block(everything[:size])
            self._pending = [everything[size:]]
            self._count -= size

    def distance(self) -> float:
        """The mean over all whole blocks; of what there is, if that is less than one block."""
        if not self._distances:
            self._add_block(torch.cat(self._pending))
        return sum(self._distances) / len(self._distances)

    def _add_block(self, block: Tensor) -> None:
        self._distances.append(self._kernel_to(block, len(self._distances)))

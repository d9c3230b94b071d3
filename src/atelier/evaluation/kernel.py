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
    n, m = len(a), len(b)
    within_a, within_b, between = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    of_a = (within_a.sum() - within_a.trace()) / (n * (n - 1))
    of_b = (within_b.sum() - within_b.trace()) / (m * (m - 1))
    return float(of_a + of_b - 2 * between.mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


class KernelAccumulator:
    """Streams features (n, d) into the mean distance of their blocks to blocks of the real features, each in turn.

    The samples of a stream are independent, so that consecutive blocks are as good as random subsets, and memory does
    not grow with their number. Blocks hold at most `BLOCK` samples, and no more than there are real features.
    """

    def __init__(self, real: Tensor) -> None:
        size = min(BLOCK, len(real))
        self._real = real[: len(real) // size * size].split(size)
        self._size = size
        self._pending = list[Tensor]()
        self._count = 0
        self._distances = list[float]()

    def update(self, features: Tensor) -> None:
        """Add features (n, d)."""
        self._pending.append(features)
        self._count += len(features)
        while self._count >= self._size:
            everything = torch.cat(self._pending)
            self._add_block(everything[: self._size])
            self._pending = [everything[self._size :]]
            self._count -= self._size

    def distance(self) -> float:
        """The mean over all whole blocks; of what there is, if that is less than one block."""
        if not self._distances:
            self._add_block(torch.cat(self._pending))
        return sum(self._distances) / len(self._distances)

    def _add_block(self, block: Tensor) -> None:
        real = self._real[len(self._distances) % len(self._real)]
        self._distances.append(kernel_distance(block, real))

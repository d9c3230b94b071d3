"""Fréchet and kernel distances between feature distributions, in float64.

Written out because importing them from a library costs seconds at each start; tests hold them to torchmetrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor

ROWS_AT_A_TIME = 1000
BLOCK = 1000  # samples in a kernel distance


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and covariance (d, d) of features, in float64."""

    count: int
    mean: Tensor
    covariance: Tensor


class MomentsAccumulator:
    """Streams features (n, d) into their moments; memory does not grow with the number of samples.

    Sums are taken about the mean of the first samples, so that the subtraction at the end cancels nothing; of many
    samples at a time, since the product of few costs more to call than to compute.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pending = list[Tensor]()
        self._pending_count = 0
        self._shift: Tensor | None = None
        self._sum: Tensor
        self._outer: Tensor

    def update(self, features: Tensor) -> None:
        """Add features (n, d)."""
        self._pending.append(features)
        self._pending_count += len(features)
        self.count += len(features)
        if self._pending_count >= ROWS_AT_A_TIME:
            self._sum_up()

    def _sum_up(self) -> None:
        values = torch.cat(self._pending).double()
        self._pending, self._pending_count = [], 0
        if self._shift is None:
            self._shift = values.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
            self._outer = torch.zeros(len(self._shift), len(self._shift), dtype=torch.float64, device=values.device)
        values -= self._shift
        self._sum += values.sum(dim=0)
        self._outer += values.T @ values

    def moments(self) -> Moments:
        """The moments so far, covariance with n - 1; needs at least two samples."""
        if self.count < 2:
            raise ValueError(f"moments need at least 2 samples, have {self.count}")
        if self._pending:
            self._sum_up()
        assert self._shift is not None  # of what was summed up
        centre = self._sum / self.count
        covariance = (self._outer - self.count * torch.outer(centre, centre)) / (self.count - 1)
        return Moments(self.count, self._shift + centre, covariance)


class DistanceTo:
    """Fréchet distances to one distribution; the root of its covariance is computed once."""

    def __init__(self, real: Moments) -> None:
        self.real = real
        values, vectors = torch.linalg.eigh(real.covariance)
        self.root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def __call__(self, other: Moments) -> float:
        """‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½) (Heusel et al., 2017, equation 6).

        The trace of the root is the sum of the roots of the eigenvalues of Σa Σb, which are those of the symmetric
        Σa^½ Σb Σa^½: real, and not negative but for rounding.
        """
        product = torch.linalg.eigvalsh(self.root @ other.covariance @ self.root)
        trace_of_root = product.clamp(min=0).sqrt().sum()
        difference = (self.real.mean - other.mean).square().sum()
        return float(difference + self.real.covariance.trace() + other.covariance.trace() - 2 * trace_of_root)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance of one pair."""
    return DistanceTo(a)(b)


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of several disjoint samples taken together (Chan et al., 1979)."""
    count = sum(part.count for part in parts)
    mean = torch.stack([part.count * part.mean for part in parts]).sum(dim=0) / count
    scatter = torch.zeros_like(parts[0].covariance)
    for part in parts:
        offset = part.mean - mean
        scatter += (part.count - 1) * part.covariance + part.count * torch.outer(offset, offset)
    return Moments(count, mean, scatter / (count - 1))


class FrechetAccumulator:
    """Streams features (n, d) into their distance to the real ones, and into what it would be with infinitely many.

    The distance of N samples is too large by about a constant / N, another one for each model (Chong and Forsyth,
    "Effectively unbiased FID", 2020). So the stream is kept as four quarters: the distances of all, of the halves and
    of the quarters lie on a line in 1/N, whose value at 0 is the extrapolation. The number of real samples stays as
    it is.
    """

    PIECES = 4

    def __init__(self, distance_to: DistanceTo) -> None:
        self._distance_to = distance_to
        self._pieces = [MomentsAccumulator() for _ in range(self.PIECES)]
        self._updates = 0

    def update(self, features: Tensor) -> None:
        """Add features (n, d). Each batch goes to all quarters, beginning with another one each time."""
        for index, part in enumerate(features.tensor_split(self.PIECES)):
            if len(part):
                self._pieces[(self._updates + index) % self.PIECES].update(part)
        self._updates += 1

    def distances(self) -> tuple[float, float]:
        """The distance of all samples, and its extrapolation to infinitely many; needs at least eight samples."""
        quarters = [piece.moments() for piece in self._pieces]
        halves = [pool(quarters[:2]), pool(quarters[2:])]
        whole = pool(halves)
        points = [
            (sum(1 / part.count for part in parts) / len(parts), sum(map(self._distance_to, parts)) / len(parts))
            for parts in ([whole], halves, quarters)
        ]
        return points[0][1], linear_regression(*zip(*points, strict=True)).intercept


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (x·y / d + 1)³.

    Unbiased at any number of samples, unlike the Fréchet distance; so it leads where there are few real images
    (Bińkowski et al., "Demystifying MMD GANs", 2018).
    """
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

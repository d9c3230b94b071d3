"""The Fréchet distance between feature distributions, in float64.

Written out because importing it from a library costs seconds at each start; a test holds it to torchmetrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor

ROWS_AT_A_TIME = 1000


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

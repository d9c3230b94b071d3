"""Fidelity and diversity apart: precision, recall (Kynkäänniemi et al., 2019), density, coverage (Naeem et al., 2020).

A set of features stands for the union of balls around each of them, out to its k-th nearest neighbour in the set.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 5
ROWS = 1000  # distances held at once: rows × set


def manifold_figures(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Compare two sets of features (n, d) and (m, d), of equal size for published figures.

    Returns:
        precision: share of fakes inside the balls of the reals: are they good?
        recall: share of reals inside the balls of the fakes: is everything there?
        density: how many balls of reals a fake lies in, over k; 1 is expected of reals, an outlier counts for little.
        coverage: share of the reals' balls with a fake in them.
    """
    real, fake = real.double(), fake.double()
    neighbours = min(NEIGHBOURS, len(real) - 1, len(fake) - 1)
    real_radii, fake_radii = _radii(real, neighbours), _radii(fake, neighbours)
    inside_real, covered, recalled = list[Tensor](), torch.zeros(len(real), dtype=torch.bool), list[Tensor]()
    for rows in fake.split(ROWS):
        inside = _distances(rows, real) <= real_radii
        inside_real.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
    for rows in real.split(ROWS):
        recalled.append((_distances(rows, fake) <= fake_radii).any(dim=1))
    counts = torch.cat(inside_real).double()
    return {
        "precision": float((counts > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(counts.mean() / neighbours),
        "coverage": float(covered.double().mean()),
    }


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Distance of each to its k-th nearest neighbour; a point is not its own neighbour."""
    radii = []
    for start in range(0, len(features), ROWS):
        distances = _distances(features[start : start + ROWS], features)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf
        radii.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")

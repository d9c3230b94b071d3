"""Nearest neighbours: in features, fidelity and diversity apart; whether training images are repeated, or fakes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.data.arrays import ManyImages
from atelier.evaluation.extractors import default_device
from atelier.pictures import Images

NEIGHBOURS = 5
ROWS = 1000  # distances held at once: rows × set
BLOCK = 5000  # training images held as floats at once


def manifold_metrics(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Compare two sets of features (n, d) and (m, d), of equal size for published values.

    Precision and recall are Kynkäänniemi et al.'s (2019), density and coverage Naeem et al.'s (2020). A set of features
    stands for the union of balls around each of them, out to its k-th nearest neighbour in the set.

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


def coverage(real: Tensor, fake: Tensor) -> float:
    """`coverage` of `manifold_metrics` alone, in half the time."""
    real, fake = real.double(), fake.double()
    radii = _radii(real, min(NEIGHBOURS, len(real) - 1))
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows in fake.split(ROWS):
        covered |= (_distances(rows, real) <= radii).any(dim=0)
    return float(covered.double().mean())


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


@dataclass(frozen=True)
class Nearest:
    """For each image its nearest training images, nearest first.

    Attributes:
        distances: (n, k), root mean square over pixels.
        indices: (n, k), of the training images.
    """

    distances: npt.NDArray[np.float64]
    indices: npt.NDArray[np.int64]


def nearest_training_images(images: Images, train: ManyImages, count: int) -> Nearest:
    """The `count` training images uint8 (m, h, w, c), in memory or not, nearest to each image (n, h, w, c).

    Distances are between pixels, in [0, 1], so that a copy is at 0 whatever an extractor makes of it.
    """
    device = default_device()
    wanted = _flat(images).to(device)
    best = torch.full((len(images), 0), torch.inf, device=device)
    indices = torch.zeros((len(images), 0), dtype=torch.long, device=device)
    for start in range(0, len(train), BLOCK):
        block = _flat(train[start : start + BLOCK]).to(device)
        found = torch.cat([best, torch.cdist(wanted, block)], dim=1)
        numbers = torch.arange(start, start + len(block), device=device).expand(len(images), -1)
        best, positions = found.topk(min(count, found.shape[1]), dim=1, largest=False)
        indices = torch.cat([indices, numbers], dim=1).gather(1, positions)
    # found by products of float32, which round the distance of a copy to a little more than 0: once more for those few
    rows = indices.cpu().numpy()
    squares = [
        np.mean((image / 255 - train[row] / 255) ** 2, axis=(1, 2, 3)) for image, row in zip(images, rows, strict=True)
    ]
    return Nearest(np.sqrt(np.stack(squares)), rows)


def nearest_others(images: Images) -> npt.NDArray[np.float64]:
    """Distance between pixels, in [0, 1], of each image (n, h, w, c) to the nearest of the others (n,)."""
    # the nearest two are itself, at 0, and the one that is asked for
    distances: npt.NDArray[np.float64] = nearest_training_images(images, images, 2).distances.max(axis=1)
    return distances


def nearest_features(features: Tensor, among: Tensor) -> Tensor:
    """Distance of each vector of features (n, d) to the nearest of (m, d), in float64 (n,)."""
    features = features.double()
    nearest = [_distances(features, block.double()).min(dim=1).values for block in among.split(BLOCK)]
    return torch.stack(nearest).min(dim=0).values


def _flat(images: Images) -> Tensor:
    return torch.from_numpy(np.array(images)).flatten(1).float().div_(255)

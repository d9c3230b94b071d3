"""Whether a model repeats its training images: how near fakes are to them, beside how near real test images are.

Distances are between pixels, in [0, 1], so that a copy is at 0 whatever an extractor makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.evaluation.extractors import default_device
from atelier.pictures import Images

BLOCK = 5000  # training images held as floats at once


@dataclass(frozen=True)
class Nearest:
    """For each image its nearest training images, nearest first.

    Attributes:
        distances: (n, k), root mean square over pixels.
        indices: (n, k), of the training images.
    """

    distances: npt.NDArray[np.float64]
    indices: npt.NDArray[np.int64]


def nearest_training_images(images: Images, train: Images, count: int) -> Nearest:
    """The `count` training images uint8 (m, h, w, c), memory-mapped or not, nearest to each image (n, h, w, c)."""
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


def _flat(images: Images) -> Tensor:
    return torch.from_numpy(np.array(images)).flatten(1).float().div_(255)

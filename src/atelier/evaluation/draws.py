"""Drawing fakes and extracting their features, shared by all ranks and put together in one order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from atelier.evaluation.extractors import Extractor
from atelier.evaluation.judge import Extracted, Labels
from atelier.pictures import Images
from atelier.ranks import Ranks
from atelier.sampler import CHUNK, Sampler

GOLDEN_RATIO = (5**0.5 - 1) / 2


def labels_like(real: Labels, classes: int, count: int) -> Labels:
    """`count` labels with the frequencies of the `real` ones, near them in any first part of it too.

    Fakes that have each class equally often are farther from real images than they need be: on MNIST the training
    images themselves are at twice the floor then. The multiples of the golden ratio fill [0, 1) evenly.
    """
    ends = np.cumsum(np.bincount(real, minlength=classes)) / len(real)
    drawn: Labels = np.searchsorted(ends, np.arange(count) * GOLDEN_RATIO % 1, side="right")
    return drawn


def chunks(count: int) -> int:
    """In how many pieces `count` fakes come."""
    return -(-count // CHUNK)


def draw_in_order(
    sampler: Sampler, extractors: list[Extractor], count: int, seed: int, labels: Labels | None, ranks: Ranks
) -> Iterator[tuple[Images, list[Extracted]]]:
    """Yield the fakes of a seed in pieces of `CHUNK`, each with what every extractor makes of it.

    The ranks take the pieces in turn, and all get all of them in order: what follows is the same, bit for bit, at any
    number of ranks.
    """
    mine = sampler.stream(count, seed, labels, ranks.rank, ranks.world_size)
    for _ in range(0, chunks(count), ranks.world_size):
        images = next(mine, None)
        piece: dict[str, Any] | None = None
        if images is not None:
            extracted = [extractor(images) for extractor in extractors]
            piece = {"images": torch.from_numpy(images), "extracted": [list(part) for part in extracted]}
        for one in ranks.gather(piece):
            if one is not None:
                yield one["images"].numpy(), [(features, classes) for features, classes in one["extracted"]]

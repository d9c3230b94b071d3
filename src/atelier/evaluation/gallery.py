"""`gallery/` of a report: samples image by image, what is near to each, real images beside them, and a map of both.

The page is made of it wherever the data are not: the pictures are sheets of a few hundred images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.config.records import Drawn, Gallery, Place, Shown
from atelier.data.arrays import ManyImages, PreparedSplit
from atelier.evaluation.evaluator import Sample
from atelier.mark import Mark
from atelier.pictures import LARGEST_TILE, webp_bytes

COLUMNS = 20
MOST, LEAST = 300, 40  # images of a sheet
SHEET_PIXELS = MOST * 32 * 32
NEIGHBOURS = 3

Places = npt.NDArray[np.float64]


def write_gallery(folder: Path, sample: Sample, test: PreparedSplit, train: ManyImages, mark: Mark) -> None:
    """Write `gallery/`: the first samples of a draw and those closest to a training image, and test images.

    Args:
        folder: of the report.
        sample: the draw.
        test: the real images, in the order of the features that the evaluation has.
        train: training images.
        mark: of what the model draws.
    """
    gallery, chosen = folder / Gallery.folder, _choose(sample)
    gallery.mkdir()
    features = sample.features[0]
    of_drawn, of_real, explained = project(features.kept, features.real.features)
    real = test.images[: _most(test.images)]
    drawn = [
        Drawn(
            index=index,
            asked=None if sample.labels is None else int(sample.labels[index]),
            recognised=int(features.recognised[index]) if len(features.recognised) else None,
            place=_place(of_drawn, index),
            nearest=[] if sample.nearest is None else sample.nearest.indices[index][:NEIGHBOURS].tolist(),
            distances=[] if sample.nearest is None else sample.nearest.distances[index][:NEIGHBOURS].round(5).tolist(),
        )
        for index in chosen
    ]
    shown = [
        Shown(label=None if test.labels is None else int(test.labels[index]), place=_place(of_real, index))
        for index in range(len(real))
    ]
    record = Gallery(
        columns=COLUMNS,
        seed=sample.seed,
        drawn=drawn,
        real=shown,
        nearest_of_test=sample.nearest_of_test,
        explained=explained,
    )
    record.write(gallery / Gallery.file)
    (gallery / Gallery.sheets["drawn"]).write_bytes(webp_bytes(sample.images[chosen], COLUMNS, mark=mark))
    (gallery / Gallery.sheets["real"]).write_bytes(webp_bytes(real, COLUMNS))
    if sample.nearest is not None:
        near = [index for one in drawn for index in one.nearest]
        (gallery / Gallery.sheets["nearest"]).write_bytes(webp_bytes(train[near], COLUMNS))


def _most(images: ManyImages) -> int:
    """How many images of this size a sheet holds."""
    height, width = images.shape[1:3]
    most: int = SHEET_PIXELS // (min(height, LARGEST_TILE) * min(width, LARGEST_TILE))
    return max(LEAST, min(MOST, most))


def _choose(sample: Sample) -> list[int]:
    """The first images; of those that are compared with training images, or nothing would be known of them.

    A fifth of them gives way to the ones nearest to a training image, so that copies are seen wherever they are.
    """
    known = len(sample.images) if sample.nearest is None else len(sample.nearest.distances)
    count = min(_most(sample.images), known)
    if sample.nearest is None or count == known:
        return list(range(count))
    first = count - count // 5
    closest = np.argsort(sample.nearest.distances[first:, 0], kind="stable")[: count - first] + first
    return [*range(first), *sorted(closest.tolist())]


def project(drawn: Tensor, real: Tensor) -> tuple[Places, Places, list[float]]:
    """Features (n, d) and (m, d) on the plane of the two principal components of the real ones.

    Returns:
        Places (n, 2) and (m, 2), in standard deviations of the real ones along the first axis, and the shares of their
        variance that the axes explain; nothing where no features of the drawn ones are known.
    """
    if not len(drawn):
        return np.empty((0, 2)), np.empty((0, 2)), []
    real, drawn = real.double(), drawn.double()
    mean, covariance = real.mean(dim=0), torch.cov(real.T)
    values, vectors = torch.linalg.eigh(covariance)
    values, axes = values.flip(0)[:2].clamp(min=0), vectors.flip(1)[:, :2]
    # an axis has no direction of its own: its largest component shall be positive
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    tiny = torch.finfo(torch.double).tiny
    scale, total = values[0].sqrt().clamp(min=tiny), covariance.trace().clamp(min=tiny)
    of_drawn, of_real = ((((one - mean) @ axes) / scale).numpy().round(3) for one in (drawn, real))
    return of_drawn, of_real, (values / total).numpy().round(4).tolist()


def _place(places: Places, index: int) -> Place | None:
    return (float(places[index, 0]), float(places[index, 1])) if index < len(places) else None

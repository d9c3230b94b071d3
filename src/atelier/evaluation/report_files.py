"""The files of `reports/RUN/` beside `report.json`: tables that DVC plots, and pictures of what a model learned."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atelier.data.arrays import ManyImages, PreparedSplit
from atelier.evaluation.distances import BLOCK, kernel_distance
from atelier.evaluation.evaluator import Real, Sample
from atelier.evaluation.likelihood import TrainedVae
from atelier.evaluation.metrics import metric_name
from atelier.evaluation.neighbours import Nearest
from atelier.evaluation.paths import ways
from atelier.journal import read_curves
from atelier.mark import MIXED, Mark
from atelier.pictures import Images, Labels, save_gif, save_png, tile
from atelier.sampler import Sampler

COLUMNS = 10
ROWS = 8
PLANE = 20
GIF_FRAME_MILLISECONDS = 150
ENCODED = 1000  # test images whose latents say which dimensions are used


class ByClass:
    """What became of each class over the draws.

    Args:
        class_names: that the model knows.
        asked: the class that each fake of a draw was asked to be of; None for an unconditional model.
    """

    def __init__(self, class_names: list[str], asked: Labels | None) -> None:
        self.class_names = class_names
        self.asked = asked
        self.recognised: Labels | None = None  # of the first draw
        self.distances = list[list[float]]()  # of each draw

    def add(self, sample: Sample) -> None:
        """Take from a draw what a classifier made of it, if there is one."""
        for features in sample.features:
            if len(features.recognised) and self.recognised is None:
                self.recognised = features.recognised
            if features.class_distances:
                self.distances.append(features.class_distances)

    def write(self, folder: Path) -> None:
        """Write two folders, which are empty without a classifier.

        `recognised/classes.csv` says how many fakes of the first draw were recognised as what they were asked to be of,
        each class in turn, and then which were taken for another one; `by_class/class_fd.csv` has the Fréchet distance
        of each class.
        """
        for name in ("recognised", "by_class"):
            (folder / name).mkdir()
        if self.recognised is not None and self.asked is not None:
            counts = np.zeros((len(self.class_names), len(self.class_names)), np.int64)
            np.add.at(counts, (self.asked, self.recognised), 1)
            # a chart takes the order of the classes, and that there are as many rows as columns, from the first lines
            pairs = [(one, one) for one in range(len(counts))]
            pairs += [(int(asked), int(taken)) for asked, taken in np.argwhere(counts) if asked != taken]
            rows = ((self.class_names[a], self.class_names[b], int(counts[a, b])) for a, b in pairs)
            _write_csv(folder / "recognised" / "classes.csv", ["asked", "recognised", "images"], rows)
        if self.distances:
            named = zip(self.class_names, np.mean(self.distances, axis=0).tolist(), strict=True)
            known = [(name, value) for name, value in named if value == value]
            _write_csv(folder / "by_class" / "class_fd.csv", ["class", "class_fd"], known)


def write_curves(folder: Path, journal: Path, sheets: list[tuple[int, Images]], real: Real) -> None:
    """Write `curves/`: each metric of the journal over kimg, and how far from the real images the pictures were.

    These were drawn from fixed latents during training. They are few, so that this is the kernel distance, which is not
    biased by that. A VAE draws them from N(0, I), since its prior is fitted at the end.
    """
    curves = folder / "curves"
    curves.mkdir()
    for name, curve in read_curves(journal).items():
        _write_csv(curves / f"{name}.csv", ["kimg", name], curve)
    metric = metric_name("kid", real.extractor.name)
    rows = []
    for images_seen, sheet in sheets:
        features, _ = real.extractor(sheet.reshape(-1, *sheet.shape[2:]))
        rows.append((images_seen / 1000, kernel_distance(features, real.features[:BLOCK])))
    _write_csv(curves / f"{metric}.csv", ["kimg", metric], rows)


def write_pictures(
    folder: Path,
    sheets: list[tuple[int, Images]],
    sampler: Sampler,
    seed: int,
    vae: TrainedVae | None,
    test: PreparedSplit,
    neighbours: tuple[Images, ManyImages, Nearest] | None,
) -> None:
    """Write `grid.png`, `training.gif` and `pictures/`.

    Args:
        folder: of the report.
        sheets: drawn during training, which become the GIF.
        sampler: draws the grid and the interpolation.
        seed: of their latents.
        vae: the same model, if it is a VAE: for the plane of latents and reconstructions of `test`.
        test: real images with the labels that the model knows.
        neighbours: fakes, training images, and which of these are nearest to those.
    """
    count = COLUMNS * max(len(sampler.class_names), 1)
    labels = np.arange(count) // COLUMNS if sampler.class_names else None
    mark = Mark.of(sampler.config, seed=seed)
    save_png(folder / "grid.png", tile(sampler.draw(count, seed, labels), columns=COLUMNS), mark)
    frames = [tile(sheet.reshape(-1, *sheet.shape[2:]), columns=sheet.shape[1]) for _, sheet in sheets]
    save_gif(folder / "training.gif", frames, GIF_FRAME_MILLISECONDS, Mark.of(sampler.config, seed=0))
    pictures = folder / "pictures"
    pictures.mkdir()
    save_png(pictures / "interpolation.png", interpolation(sampler, seed), mark)
    if neighbours is not None:
        save_png(pictures / "neighbours.png", nearest_neighbours(*neighbours), mark, MIXED)
    if vae is not None:
        images, known = test.images[:ENCODED], None if test.labels is None else test.labels[:ENCODED]
        save_png(pictures / "latent-plane.png", latent_plane(vae, images, known), Mark.of(sampler.config))
        save_png(pictures / "reconstructions.png", reconstructions(vae, images, known), Mark.of(sampler.config), MIXED)


def interpolation(sampler: Sampler, seed: int) -> Images:
    """A row from one latent to another; a conditional model keeps a row's class."""
    classes = len(sampler.class_names)
    labels = torch.arange(ROWS) % classes if classes else None
    return tile(ways(sampler, seed, ROWS, COLUMNS, labels), columns=COLUMNS)


def latent_plane(vae: TrainedVae, images: Images, labels: Labels | None) -> Images:
    """The two latent dimensions that tell these images apart best, from the 5th to the 95th percentile of N(0, 1).

    The others are 0; a conditional model is asked for its first class.
    """
    means = vae.encode(images, labels)
    used = means.var(dim=0).topk(min(2, means.shape[1])).indices.cpu()
    values = torch.special.ndtri(torch.linspace(0.05, 0.95, PLANE))
    latents = torch.zeros(PLANE * PLANE, means.shape[1])
    latents[:, used] = torch.cartesian_prod(values, values)[:, : len(used)]
    return tile(vae.decode(latents, None if labels is None else np.zeros(len(latents), np.int64)), columns=PLANE, gap=0)


def reconstructions(vae: TrainedVae, images: Images, labels: Labels | None) -> Images:
    """Test images, each row of them above what the VAE makes of it."""
    count = ROWS // 2 * COLUMNS
    originals, asked = images[:count].copy(), None if labels is None else labels[:count]
    decoded = vae.decode(vae.encode(originals, asked), asked)
    rows = [
        part
        for start in range(0, len(originals), COLUMNS)
        for part in (originals[start : start + COLUMNS], decoded[start : start + COLUMNS])
    ]
    return tile(np.concatenate(rows), columns=COLUMNS)


def nearest_neighbours(fakes: Images, train: ManyImages, nearest: Nearest) -> Images:
    """The fakes that are closest to a training image, each before its nearest training images."""
    closest = np.argsort(nearest.distances[:, 0], kind="stable")[:ROWS]
    rows = [np.concatenate([fakes[index : index + 1], train[nearest.indices[index]]]) for index in closest]
    return tile(np.concatenate(rows), columns=1 + nearest.indices.shape[1])


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)

"""The files of `reports/RUN/` beside `metrics.json`: tables that DVC plots, and pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from atelier.config.records import ModelConfig
from atelier.data.arrays import PreparedSplit
from atelier.evaluation import latent_pictures
from atelier.evaluation.judge import Judgement, Labels, Real
from atelier.evaluation.kernel import BLOCK, kernel_distance
from atelier.evaluation.likelihood import TrainedVae
from atelier.evaluation.memorisation import Nearest
from atelier.evaluation.reports import metric_name
from atelier.pictures import Images, load_png, save_gif, save_png, tile, untile
from atelier.sampler import Sampler

GRID_COLUMNS = 10
GIF_FRAME_MILLISECONDS = 150
ENCODED = 1000  # test images whose latents say which dimensions are used


def write_plots(
    folder: Path, journal: list[dict[str, Any]], asked: Labels | None, class_names: list[str], draws: list[Judgement]
) -> None:
    """Write `curves/`, a CSV a figure of the journal over kimg, and `classes/`: what became of each class.

    `recognised/classes.csv` has the asked and the recognised class of each fake of the first draw, -1 where none was
    asked for; `by_class/class_fd.csv` the Fréchet distance of each class. Both folders are empty without a classifier.
    """
    for name in ("curves", "recognised", "by_class"):
        (folder / name).mkdir()
    for name in journal[0] if journal else ():
        if name not in ("kimg", "step"):
            rows = ((line["kimg"], line[name]) for line in journal)
            _write_csv(folder / "curves" / f"{name}.csv", ["kimg", name], rows)
    recognised = draws[0].recognised
    if len(recognised):
        asked = asked if asked is not None else np.full(len(recognised), -1)
        pairs = zip(asked.tolist(), recognised.tolist(), strict=True)
        _write_csv(folder / "recognised" / "classes.csv", ["asked", "recognised"], pairs)
    if draws[0].class_distances:
        mean = np.mean([draw.class_distances for draw in draws], axis=0)
        known = [(name, value) for name, value in zip(class_names, mean.tolist(), strict=True) if value == value]
        _write_csv(folder / "by_class" / "class_fd.csv", ["class", "class_fd"], known)


def write_over_training(folder: Path, model_folder: Path, config: ModelConfig, real: Real) -> None:
    """Add to `curves/` how far the pictures from fixed latents were from the real images, over kimg.

    They are few, so this is the kernel distance, which is not biased by that. A VAE draws them from N(0, I), since its
    prior is fitted at the end.
    """
    paths = sorted((model_folder / "pictures").glob("*.png"))
    last = int(paths[-1].stem)
    metric = metric_name("kid", real.extractor.name)
    rows = []
    for path in paths:
        features, _ = real.extractor(untile(load_png(path), config.height))
        kimg = config.recipe.kimg * int(path.stem) / last
        rows.append((kimg, kernel_distance(features, real.features[:BLOCK])))
    _write_csv(folder / "curves" / f"{metric}.csv", ["kimg", metric], rows)


def write_pictures(
    folder: Path,
    model_folder: Path,
    sampler: Sampler,
    seed: int,
    vae: TrainedVae | None,
    test: PreparedSplit,
    neighbours: tuple[Images, Images, Nearest] | None,
) -> None:
    """Write `grid.png`, `training.gif` and `pictures/`.

    Args:
        folder: of the report.
        model_folder: of the model, whose pictures over training become the GIF.
        sampler: draws the grid and the interpolation.
        seed: of their latents.
        vae: the same model, if it is a VAE: for the plane of latents and reconstructions of `test`.
        test: real images with the labels that the model knows.
        neighbours: fakes, training images, and which of these are nearest to those.
    """
    count = GRID_COLUMNS * max(len(sampler.class_names), 1)
    labels = np.arange(count) // GRID_COLUMNS if sampler.class_names else None
    save_png(folder / "grid.png", tile(sampler.draw(count, seed, labels), columns=GRID_COLUMNS))
    frames = [load_png(path) for path in sorted((model_folder / "pictures").glob("*.png"))]
    save_gif(folder / "training.gif", frames, GIF_FRAME_MILLISECONDS)
    pictures = folder / "pictures"
    pictures.mkdir()
    save_png(pictures / "interpolation.png", latent_pictures.interpolation(sampler, seed))
    if neighbours is not None:
        save_png(pictures / "neighbours.png", latent_pictures.neighbours(*neighbours))
    if vae is not None:
        images, known = test.images[:ENCODED], None if test.labels is None else test.labels[:ENCODED]
        save_png(pictures / "latent-plane.png", latent_pictures.latent_plane(vae, images, known))
        save_png(pictures / "reconstructions.png", latent_pictures.reconstructions(vae, images, known))


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)

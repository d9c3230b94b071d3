"""The stage `evaluate`: a trained sampler against real test images; metrics, plots, pictures in `reports/RUN/`.

Started by `torchrun`, the ranks share the drawing and the extracting; the first one writes and speaks for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atelier.config import Evaluate, Params
from atelier.data.arrays import PreparedSplit, open_split
from atelier.errors import InputError
from atelier.evaluation.classifier import accuracy_score
from atelier.evaluation.draws import chunks, draw_in_order, labels_like
from atelier.evaluation.judge import Judge, Judgement, Labels, combined, over_draws
from atelier.evaluation.likelihood import TrainedVae, likelihood_figures
from atelier.evaluation.memorisation import Nearest, nearest_training_images
from atelier.evaluation.reference import Reference, load_reference, shuffled_test
from atelier.evaluation.report_files import write_over_training, write_pictures, write_plots
from atelier.evaluation.reports import FLOOR, metric_name
from atelier.files import atomic_directory, write_json
from atelier.journal import read_journal
from atelier.pictures import Images
from atelier.progress import watch
from atelier.ranks import Ranks, join_ranks
from atelier.sampler import Sampler

KEPT_FAKES = 10_000  # for what needs the images themselves, at most
NEIGHBOURS = 5  # training images shown beside a fake


@dataclass(frozen=True)
class Draw:
    """One independent sample, judged: the first fakes of it, and their nearest training images if asked for."""

    judgement: Judgement
    fakes: Images
    nearest: Nearest | None


def evaluate(run_name: str, params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Judge a trained run and write its report: see `atelier.evaluation.reports` for `metrics.json`.

    Raises:
        InputError: if the model or the reference is missing, or the data have other classes than the model.
        AtelierError: if one of them is not what its digest says.
    """
    with join_ranks() as ranks:
        target = _evaluate(run_name, params, root, ranks, say)
    if not ranks.is_writer:
        raise SystemExit(0)  # the result is the writer's to tell
    return target


def _evaluate(run_name: str, params: Params, root: Path, ranks: Ranks, say: Callable[[str], None]) -> Path:
    run, settings = params.run(run_name), params.evaluate
    model_folder = root / "models" / run_name
    sampler = Sampler.load(model_folder)
    reference = load_reference(root, run.dataset, params.extractors(run.dataset))
    vae = TrainedVae.load(sampler, model_folder)
    train, test = open_split(root, run.dataset, "train"), shuffled_test(root, run.dataset)
    asked: Labels | None = None
    if sampler.class_names:
        if test.labels is None or sampler.class_names != list(params.dataset(run.dataset).class_names):
            raise InputError(
                f"models/{run_name}: was trained with other classes than '{run.dataset}' has now; train it again"
            )
        asked = labels_like(test.labels, len(sampler.class_names), settings.samples)
    else:
        test = PreparedSplit(test.images, None)
    target = root / "reports" / run_name

    judgements, figures = list[Judgement](), list[dict[str, float]]()
    neighbours: tuple[Images, Images, Nearest] | None = None  # of the first draw
    for number in range(settings.draws):
        draw = _draw(sampler, asked, reference, train, settings, number, ranks)
        if ranks.is_writer:
            judgements.append(draw.judgement)
            figures.append(_figures(draw, asked, reference, test, vae, settings, settings.seed + number))
            if number == 0 and draw.nearest is not None:
                neighbours = draw.fakes[: settings.memorisation_samples], train.images, draw.nearest
    if not ranks.is_writer:
        return target

    metrics: dict[str, Any] = over_draws(figures)
    metrics |= {FLOOR + name: value for name, value in reference.floor.items()}
    metrics["conditions"] = _conditions(reference, settings)
    metrics["weights_sha256"] = sampler.config.sampler_sha256
    with atomic_directory(target) as folder:
        write_json(folder / "metrics.json", metrics)
        write_plots(folder, read_journal(model_folder / "journal.jsonl"), asked, sampler.class_names, judgements)
        write_over_training(folder, model_folder, sampler.config, reference.reals[0])
        write_pictures(folder, model_folder, sampler, settings.seed, vae, test, neighbours)
    for real in reference.reals:
        metric = metric_name("fd", real.extractor.name)
        distance, least = metrics[metric], metrics[FLOOR + metric]
        say(f"{metric} {distance['mean']:.2f} ± {distance['deviation']:.2f} (floor {least['mean']:.2f})")
    return target


def _draw(
    sampler: Sampler,
    asked: Labels | None,
    reference: Reference,
    train: PreparedSplit,
    settings: Evaluate,
    number: int,
    ranks: Ranks,
) -> Draw:
    extractors = [real.extractor for real in reference.reals]
    judges = [Judge(real, settings.manifold_samples) for real in reference.reals]
    stream = draw_in_order(sampler, extractors, settings.samples, settings.seed + number, asked, ranks)
    kept, position = list[Images](), 0
    for images, extracted in watch(stream, chunks(settings.samples), f"draw {number + 1}", "batch"):
        if not ranks.is_writer:
            continue
        labels = None if asked is None else asked[position : position + len(images)]
        for judge, part in zip(judges, extracted, strict=True):
            judge.update(part, labels)
        if position < KEPT_FAKES:
            kept.append(images)
        position += len(images)
    if not ranks.is_writer:
        return Draw(Judgement({}), np.empty(0, np.uint8), None)
    fakes = np.concatenate(kept)
    count = min(settings.memorisation_samples, len(fakes))
    nearest = nearest_training_images(fakes[:count], train.images, NEIGHBOURS) if count else None
    return Draw(combined([judge.judgement() for judge in judges]), fakes, nearest)


def _figures(
    draw: Draw,
    asked: Labels | None,
    reference: Reference,
    test: PreparedSplit,
    vae: TrainedVae | None,
    settings: Evaluate,
    seed: int,
) -> dict[str, float]:
    """All figures of a draw, by metric."""
    figures = dict(draw.judgement.figures)
    if asked is not None and len(draw.judgement.recognised):
        figures["label_agreement"] = float(np.mean(asked == draw.judgement.recognised))
    if asked is not None and settings.accuracy_kimg:
        figures["accuracy_score"] = accuracy_score(
            draw.fakes, asked[: len(draw.fakes)], test, settings.accuracy_kimg, seed
        )
    if draw.nearest is not None and reference.nearest_train is not None:
        figures["nearest_train_ratio"] = float(np.median(draw.nearest.distances[:, 0])) / reference.nearest_train
    if vae is not None and settings.likelihood_images:
        count = settings.likelihood_images
        labels = None if test.labels is None else test.labels[:count]
        figures |= likelihood_figures(vae, test.images[:count], labels, settings.likelihood_samples, seed)
    return figures


def _conditions(reference: Reference, settings: Evaluate) -> dict[str, Any]:
    facts = reference.reals[0].facts
    return {
        "fakes": settings.samples,
        "classes": "as real",
        "draws": settings.draws,
        "seed": settings.seed,
        **{key: facts[key] for key in ("real", "real_split", "real_images_sha256")},
        "floor_images": reference.floor_images,
        "extractors": {real.extractor.name: real.extractor.sha256 for real in reference.reals},
        "manifold_samples": settings.manifold_samples,
        "accuracy_kimg": settings.accuracy_kimg,
        "memorisation_samples": settings.memorisation_samples,
        "likelihood_images": settings.likelihood_images,
        "likelihood_samples": settings.likelihood_samples,
    }

"""The stage `evaluate`: a trained sampler against real test images; metrics, plots, pictures in `reports/RUN/`.

Started by `torchrun`, the ranks share drawing, extracting and likelihoods; the first one writes and speaks for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from atelier.config import Evaluate, Params
from atelier.config.records import FLOOR, Conditions, Estimate, OwnMetric, Report
from atelier.data.arrays import PreparedSplit, open_split
from atelier.errors import AtelierError, InputError
from atelier.evaluation.evaluator import (
    Features,
    Sample,
    chunks,
    draw_in_order,
    labels_like,
    over_draws,
    over_trainings,
)
from atelier.evaluation.gallery import write_gallery
from atelier.evaluation.likelihood import TrainedVae, likelihood_metrics
from atelier.evaluation.metrics import Metric, cautions, metric_name
from atelier.evaluation.neighbours import nearest_training_images
from atelier.evaluation.reference import Reference, load_reference, shuffled_test
from atelier.evaluation.report_files import ByClass, write_curves, write_pictures
from atelier.files import atomic_directory, hold, write_json
from atelier.mark import Mark
from atelier.own import Part
from atelier.pictures import SHEET_ROWS, SHEETS, Images, Labels, load_sheets, sides
from atelier.progress import watch
from atelier.ranks import Ranks, join_ranks
from atelier.sampler import Sampler, trainings

KEPT_FAKES = 10_000  # for what needs the images themselves, at most
NEIGHBOURS = 5  # training images shown beside a fake


def evaluate(run_name: str, params: Params, root: Path, say: Callable[[str], None]) -> Path | None:
    """Judge a trained run and write its report; `atelier.config.records.Report` is its `report.json`.

    Returns:
        The folder of the report; None on ranks that are not the first.

    Raises:
        InputError: if the model or the reference is missing, or the data have other classes than the model.
        AtelierError: if one of them is not what its digest says.
    """
    with join_ranks() as ranks, ExitStack() as held:
        ranks.by_writer(lambda: held.enter_context(hold(root / "reports" / run_name)))
        return _evaluate(run_name, params, root, ranks, say)


def _evaluate(run_name: str, params: Params, root: Path, ranks: Ranks, say: Callable[[str], None]) -> Path | None:
    run, settings = params.run(run_name), params.evaluate
    own, described = _own_metrics(params.metric_parts())
    model_folder = root / "models" / run_name
    sampler = Sampler.load(model_folder, root)
    train, test = open_split(root, run.dataset, "train"), shuffled_test(root, run.dataset)
    config = sampler.config
    has, draws = test.images.shape[1:], (config.height, config.width, config.channels)
    if has != draws:
        raise InputError(
            f"models/{run_name}: draws images of {sides(draws)}, and '{run.dataset}' has {sides(has)} now; train again"
        )
    extractors, with_train = params.extractors(run.dataset), settings.memorisation_features > 0
    reference = load_reference(root, run.dataset, extractors, with_train)
    vae = TrainedVae.load(sampler, model_folder, root)
    sheet = SHEET_ROWS, len(config.class_names) or SHEET_ROWS, config.height, config.width, config.channels
    sheets = load_sheets(model_folder / SHEETS, sheet, f"run 'atelier train {run_name}' again")
    asked: Labels | None = None
    if sampler.class_names:
        if test.labels is None or sampler.class_names != list(run.info.class_names):
            raise InputError(
                f"models/{run_name}: was trained with other classes than '{run.dataset}' has now; train it again"
            )
        asked = labels_like(test.labels, len(sampler.class_names), settings.samples)
    else:
        test = PreparedSplit(test.images, None)

    estimates, classes = list[dict[str, Estimate]](), ByClass(sampler.class_names, asked)
    first: Sample | None = None  # draw
    # of several seeds, each is judged; what is shown is of the one that is the model
    for folder in trainings(model_folder):
        one, metrics = Sampler.load(folder, root), list[dict[str, float]]()
        is_model = one.config.sampler_sha256 == config.sampler_sha256
        one_vae = vae if is_model else TrainedVae.load(one, folder, root)
        for number in range(settings.draws):
            sample = _draw(one, one_vae, asked, reference, train, test, settings, own, number, ranks)
            if sample is None:
                continue
            metrics.append(sample.metrics())
            if is_model:
                classes.add(sample)
                first = first or sample
        if ranks.is_writer:
            try:
                estimates.append(over_draws(metrics))
            except AtelierError as error:
                raise AtelierError(f"{folder}: {error}") from None
    if first is None:
        return None

    report = Report(
        metrics=over_trainings(estimates) | {FLOOR + name: value for name, value in reference.record.floor.items()},
        conditions=_conditions(reference, settings),
        weights_sha256=sampler.config.sampler_sha256,
        own=described,
    )
    target = root / "reports" / run_name
    with atomic_directory(target) as folder:
        report.write(folder / Report.file)
        write_json(folder / "metrics.json", {name: value.mean for name, value in report.measured.items()})
        write_curves(folder, model_folder / "journal.jsonl", sheets, reference.reals[0])
        classes.write(folder)
        neighbours = (first.images, train.images, first.nearest) if first.nearest is not None else None
        write_pictures(folder, sheets, sampler, settings.seed, vae, test, neighbours)
        write_gallery(folder, first, test, train.images, Mark.of(config, seed=settings.seed))
    conditions = report.conditions
    compared = f"{conditions.fakes:,} fakes against {conditions.real:,} {conditions.real_split} images"
    for real in reference.reals:
        metric = metric_name("fd", real.extractor.name)
        distance, floor = report.metrics[metric], report.floor(metric)
        beside = f" (floor {floor.mean:.2f})" if floor else ""
        say(f"{metric} {distance.mean:.2f} ± {distance.deviation:.2f}{beside}, {compared}")
    for caution in cautions(conditions):
        say(caution)
    return target


def _draw(
    sampler: Sampler,
    vae: TrainedVae | None,
    asked: Labels | None,
    reference: Reference,
    train: PreparedSplit,
    test: PreparedSplit,
    settings: Evaluate,
    own: Iterable[Metric],
    number: int,
    ranks: Ranks,
) -> Sample | None:
    """One independent sample; None on ranks that do not write."""
    features = [Features(real, settings.manifold_samples, settings.memorisation_features) for real in reference.reals]
    extractors = [real.extractor for real in reference.reals]
    seed = settings.seed + number
    stream = draw_in_order(sampler, extractors, settings.samples, seed, asked, ranks)
    kept, position = list[Images](), 0
    for images, extracted in watch(stream, chunks(settings.samples), f"draw {number + 1}", "batch"):
        if not ranks.is_writer:
            continue
        labels = None if asked is None else asked[position : position + len(images)]
        for one, part in zip(features, extracted, strict=True):
            one.update(part, labels)
        if position < KEPT_FAKES:
            kept.append(images)
        position += len(images)
    likelihood = dict[str, float]()
    if vae is not None and (count := settings.likelihood_images):
        labels = None if test.labels is None else test.labels[:count]
        likelihood = likelihood_metrics(vae, test.images[:count], labels, settings.likelihood_samples, seed, ranks)
    if not ranks.is_writer:
        return None
    sample = Sample(
        *(features, np.concatenate(kept), asked, settings, seed, test),
        drawn=True,
        sampler=sampler,
        likelihood=likelihood,
        own=own,
    )
    if settings.memorisation_samples:
        wanted = sample.images[: settings.memorisation_samples]
        sample.nearest = nearest_training_images(wanted, train.images, NEIGHBOURS)
        sample.nearest_of_test = reference.record.nearest_train
    return sample


def _own_metrics(parts: tuple[Part, ...]) -> tuple[list[Metric], dict[str, OwnMetric]]:
    """The user's own, and what the report says of them."""
    if not parts:
        return [], {}
    from atelier.evaluation.own import described, own_metrics

    rows = own_metrics(parts)
    return list(rows.values()), described(parts, rows)


def _conditions(reference: Reference, settings: Evaluate) -> Conditions:
    records = {real.extractor.name: real.record for real in reference.reals}
    real = reference.reals[0].record
    parameters = (Conditions.model_fields.keys() & Evaluate.model_fields.keys()) - {"extractors"}
    return Conditions(
        fakes=settings.samples,
        classes="as real",
        real=real.real,
        real_split=real.real_split,
        real_images_sha256=real.real_images_sha256,
        floor_images=reference.record.floor_images,
        extractors={name: record.sha256 for name, record in records.items()},
        dimensions={name: record.dimensions for name, record in records.items()},
        **{key: getattr(settings, key) for key in parameters},
    )

"""The stage `compare`: all runs side by side in `reports/index.html`, `reports/summary.json` and `reports/curves.csv`.

They are the same wherever equal models are compared. What differs, times, commits and versions, goes to
`reports/local.js`: the page shows it where that file lies beside it, and is complete without.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atelier.config import Params, Run
from atelier.config.records import Estimate, Gallery, ModelConfig, OwnMetric, Registration, Report, VersionRecord
from atelier.errors import AtelierError
from atelier.evaluation.metrics import GROUPS, cautions, find_metric, metric_name
from atelier.evaluation.narrative import SURE, incomparable, leading_metric, narrative, standard_error, with_deviation
from atelier.evaluation.site import Curve, DatasetPage, MetricText, Page, Picture, RunPage, Value, render
from atelier.files import read_limited, to_json, write_atomic, write_json
from atelier.journal import read_curves, read_timing, record_folder
from atelier.mark import Mark
from atelier.pictures import SHEET_ROWS, load_sheets, webp_bytes
from atelier.pictures import SHEETS as OF_TRAINING

T = TypeVar("T")
CSV_BYTES, PICTURE_BYTES = 16 << 20, 128 << 20  # no honest file of a report is larger
CURVE_POINTS = 400  # of a longer curve, evenly chosen ones are drawn
PAGE, LOCAL, LOCAL_IS = "index.html", "local.js", "const LOCAL = "
CURVES = "curves.csv"  # what DVC plots: a chart for each figure of a data set, a line for each run
STEPS = 16  # pictures of training that the page shows, at most
PICTURES = {
    "pictures/interpolation.png": "Between two latents, from left to right.",
    "pictures/latent-plane.png": "Over the plane of the two latent dimensions that matter most; first class.",
    "pictures/reconstructions.png": "Test images, and below each what the VAE makes of it.",
}


@dataclass(frozen=True)
class Compared:
    """A run that was judged, and what this workspace alone knows of it.

    Attributes:
        run: as params.yaml has it by now.
        config: of what was trained.
        report: its metrics.
        timing: the record of its training times; empty if it was trained elsewhere.
        version: that it is registered as; None if that was elsewhere.
        gallery: its samples, one by one.
    """

    run: Run
    config: ModelConfig
    report: Report
    timing: list[dict[str, float]]
    version: VersionRecord | None
    gallery: Gallery

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run.name

    @property
    def kimg(self) -> float:
        """That it was trained for."""
        snapshot = self.config.snapshot
        return self.config.recipe.kimg if snapshot is None else snapshot.trained_kimg

    @property
    def notes(self) -> list[str]:
        """What is to be known of its trainings: how many, which one is shown, and why it ended."""
        found, snapshot, metric = list[str](), self.config.snapshot, metric_name("fd", self.report.extractor)
        first = self.report.metrics[metric]
        if first.trainings:
            found.append(
                f"{len(first.trainings)} trainings: their mean ± the standard deviation between them; that of draws "
                f"within one is {first.draws_deviation:.2g} in {metric}. Shown is seed {self.config.recipe.seed}, of "
                "the smallest validation distance."
            )
        if snapshot is not None and snapshot.kimg < snapshot.trained_kimg:
            found.append(f"Weights of {snapshot.kimg:g} kimg, of the smallest validation distance.")
        if snapshot is not None and snapshot.stopped:
            found.append(f"Ended before its time: {snapshot.stopped}.")
        return found

    @property
    def place(self) -> str:
        """Its name in `local.js`."""
        return _place(self.name, self.report.weights_sha256)

    @property
    def copies(self) -> list[int]:
        """Which samples of its gallery, by their index in the draw, are as good as training images."""
        return [one.index for one in self.gallery.drawn if self.gallery.is_copy(one)]


def compare(params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Write the report over every run of `params.yaml` and print its table.

    Raises:
        InputError: if a run has no report yet.
        AtelierError: if a file of it is damaged.
    """
    runs = [_collect(params.run(name), root) for name in params.runs]
    summary = {
        run.name: {
            "dataset": run.run.dataset,
            "model": run.run.model,
            "kimg": run.kimg,
            "metrics": run.report.model_dump(mode="json"),
        }
        for run in runs
    }
    names = dict.fromkeys(run.run.dataset for run in runs)
    datasets = [_of_dataset([run for run in runs if run.run.dataset == name]) for name in names]
    own = {kind: one for run in runs for kind, one in run.report.own.items()}
    measured = dict.fromkeys(metric for run in runs for metric in run.report.measured)
    page = Page(
        title=params.compare.title,
        sure=SURE,
        groups=GROUPS,
        metrics={metric: _in_words(metric, own) for metric in measured},
        datasets=datasets,
        runs=[_of_run(run, root) for run in runs],
    )
    write_json(root / "reports" / "summary.json", summary)
    write_atomic(root / "reports" / CURVES, _curves(page.runs))
    _write_local(root, _local(runs, root))
    target = root / "reports" / PAGE
    write_atomic(target, render(page))
    for line in results_table(runs):
        say(line)
    for dataset in datasets:
        for caution in dataset.cautions:
            say(f"{dataset.title}: {caution}")
    say(f"report: {target}")
    return target


def results_table(runs: list[Compared]) -> list[str]:
    """The metrics of each run as lines of text, columns aligned: one column per kind of distance."""
    distances = list(
        dict.fromkeys(metric_name("fd", name) for run in runs for name in run.report.conditions.extractors)
    )
    rows = [("run", *distances, "floor", "label agreement", "kimg", "training", "registered as")]
    for run in runs:
        metrics = run.report.metrics
        agreement = metrics.get("label_agreement")
        rows.append(
            (
                run.name,
                *(with_deviation(metrics.get(metric)) for metric in distances),
                with_deviation(run.report.floor(metric_name("fd", run.report.extractor))),
                f"{agreement.mean:.2%}" if agreement else "–",
                f"{run.kimg:g}",
                f"{run.timing[-1]['seconds']:.0f} s" if run.timing else "–",
                run.version.uri if run.version else "–",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _collect(run: Run, root: Path) -> Compared:
    # what was trained, not what params.yaml says by now
    config = ModelConfig.read(root / "models" / run.name / "config.json", f"atelier train {run.name}")
    folder, judge = root / "reports" / run.name, f"atelier evaluate {run.name}"
    report = Report.read(folder / Report.file, judge)
    registration = Registration.read(root / "registry" / f"{run.name}.json", f"atelier register {run.name}")
    record = record_folder(root, run.name, report.weights_sha256)
    return Compared(
        run=run,
        config=config,
        report=report,
        timing=read_timing(record / "timing.jsonl"),
        version=_version(record / "version.json", registration),
        gallery=Gallery.read(folder / Gallery.folder / Gallery.file, judge),
    )


def _version(path: Path, registration: Registration) -> VersionRecord | None:
    """Which version in the workspace's store is what was registered; None if it was registered elsewhere."""
    found = VersionRecord.read(path, "atelier register") if path.is_file() else None
    return found if found is not None and dict(registration).items() <= dict(found).items() else None


def playground_of(root: Path, run: str, weights_sha256: str) -> Path:
    """The folder in the reports for a page that draws from a model; its name is none of a run's."""
    return root / "reports" / f"{run}-{weights_sha256[:16]}.playground"


def link_playground(root: Path, run: str, weights_sha256: str) -> None:
    """Have a report that is there already lead to the playground of a run.

    Raises:
        AtelierError: if its `local.js` is damaged.
    """
    path, place = root / "reports" / LOCAL, _place(run, weights_sha256)
    if not path.is_file():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8").removeprefix(LOCAL_IS).removesuffix(";\n"))
        if place not in known:
            return
        known[place] |= _playground(root, run, weights_sha256)
    except (ValueError, TypeError):
        raise AtelierError(f"{path}: damaged; run 'atelier compare' again") from None
    _write_local(root, known)


def _playground(root: Path, run: str, weights_sha256: str) -> dict[str, str]:
    page = playground_of(root, run, weights_sha256) / PAGE
    return {"playground": page.relative_to(root / "reports").as_posix()} if page.is_file() else {}


def _place(run: str, weights_sha256: str) -> str:
    return f"{run} {weights_sha256[:16]}"


def _write_local(root: Path, known: dict[str, dict[str, Any]]) -> None:
    write_atomic(root / "reports" / LOCAL, f"{LOCAL_IS}{to_json(known).rstrip()};\n")


def _local(runs: list[Compared], root: Path) -> dict[str, dict[str, Any]]:
    """What of each run is so here alone, by its place: version, commit, when it ended, seconds at kimg, playground."""
    found = dict[str, dict[str, Any]]()
    for run in runs:
        known = found[run.place] = dict[str, Any](_playground(root, run.name, run.report.weights_sha256))
        if run.version:
            known |= {"version": run.version.uri, "commit": run.version.commit, "clean": run.version.clean}
        if run.timing:
            known["unix"] = run.timing[-1]["unix"]
            known["seconds"] = [(line["kimg"], round(line["seconds"], 2)) for line in _thinned(run.timing)]
    return found


def _of_dataset(runs: list[Compared]) -> DatasetPage:
    """What the page says of one data set."""
    reports = {run.name: run.report for run in runs}
    first = runs[0]
    measured = list(dict.fromkeys(name for report in reports.values() for name in report.measured))
    floors = {
        name: _value(floor)
        for name in measured
        if (floor := next((floor for report in reports.values() if (floor := report.floor(name))), None))
    }
    copied = [
        f"{run.name} repeats training images: {len(run.copies)} of the {len(run.gallery.drawn)} samples shown here."
        for run in runs
        if run.copies
    ]
    return DatasetPage(
        name=first.run.dataset,
        title=first.run.info.title,
        runs=[run.name for run in runs],
        text=narrative(reports) + copied,
        cautions=list(dict.fromkeys(caution for run in runs for caution in cautions(run.report.conditions))),
        leading=leading_metric(first.report),
        over_training=metric_name("kid", first.report.extractor),
        floors=floors,
        incomparable={name: reason for name in measured if (reason := incomparable(reports, name))},
        conditions=first.report.conditions,
    )


def _of_run(run: Compared, root: Path) -> RunPage:
    folder, model, config = root / "reports" / run.name, root / "models" / run.name, run.config
    columns = len(config.class_names) or SHEET_ROWS
    shape = SHEET_ROWS, columns, config.height, config.width, config.channels
    sheets = _thinned(load_sheets(model / OF_TRAINING, shape, f"run 'atelier train {run.name}' again"), STEPS)
    drawn = {caption: name for name, caption in PICTURES.items() if (folder / name).is_file()}
    galleries = {which: folder / Gallery.folder / name for which, name in Gallery.sheets.items()}
    images = {which: _data_uri(path, run.name) for which, path in galleries.items() if path.is_file()}
    images |= {name: _data_uri(folder / name, run.name) for name in drawn.values()}
    mark = Mark.of(config, seed=0)
    for seen, images_then in sheets:
        content = webp_bytes(images_then.reshape(-1, *images_then.shape[2:]), columns, lossless=False, mark=mark)
        images[f"step {seen}"] = _as_uri("webp", content)
    metric = metric_name("kid", run.report.extractor)
    over_training = _read(folder / "curves" / f"{metric}.csv", run.name, _curve)
    curves = {metric: over_training, **read_curves(model / "journal.jsonl")}
    by_class, recognised = folder / "by_class" / "class_fd.csv", folder / "recognised" / "classes.csv"
    extractors = {f"{name} sha256": sha256 for name, sha256 in run.report.conditions.extractors.items()}
    return RunPage(
        name=run.name,
        place=run.place,
        dataset=run.run.dataset,
        model=run.run.model,
        source=run.run.entry.source,
        kimg=run.kimg,
        notes=run.notes,
        megabytes=round((model / "sampler.safetensors").stat().st_size / 1e6, 2),
        class_names=config.class_names,
        height=config.height,
        width=config.width,
        recipe=config.recipe.model_dump(mode="json"),
        digests={
            "weights sha256": run.report.weights_sha256,
            **extractors,
            "real images sha256": run.report.conditions.real_images_sha256,
        },
        values={name: _value(value) for name, value in run.report.measured.items()},
        curves={name: [(_short(x), _short(y)) for x, y in _thinned(curve)] for name, curve in curves.items()},
        by_class=_read(by_class, run.name, _distances) if by_class.is_file() else [],
        confusion=_read(recognised, run.name, lambda rows: _confusion(rows, config.class_names))
        if recognised.is_file()
        else [],
        gallery=run.gallery,
        copies=run.copies,
        steps=[seen / 1000 for seen, _ in sheets],
        rows=SHEET_ROWS,
        columns=columns,
        pictures=[Picture(caption, name) for caption, name in drawn.items()],
        images=images,
    )


def _curves(runs: list[RunPage]) -> str:
    """The curves of all runs as a table; those of one chart are together."""
    charts = dict.fromkeys((run.dataset, name) for run in runs for name in run.curves)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["chart", "run", "kimg", "value"])
    for dataset, name in charts:
        for run in runs:
            if run.dataset == dataset:
                writer.writerows((f"{dataset}: {name}", run.name, *point) for point in run.curves.get(name, []))
    return text.getvalue()


def _in_words(name: str, own: Mapping[str, OwnMetric]) -> MetricText:
    found = find_metric(name, own)
    if found is None:
        return MetricText(name, None, "own", "", "")
    metric, extractor = found
    return MetricText(
        title=metric.title,
        features=extractor if metric.in_features else None,
        group=metric.group,
        better=metric.better,
        explanation=metric.explanation,
    )


def _thinned(values: list[T], most: int = CURVE_POINTS) -> list[T]:
    """At most so many of them, evenly chosen, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(one)] for one in np.linspace(0, len(values) - 1, most)]


def _short(value: float) -> float:
    """To the digits that a chart can show."""
    return float(f"{value:.5g}")


def _value(estimate: Estimate) -> Value:
    return Value(estimate.mean, estimate.deviation, standard_error(estimate), with_deviation(estimate))


def _read(path: Path, run: str, read: Callable[[list[list[str]]], T]) -> T:
    """What a function makes of the lines of a table that `evaluate` wrote, without its head.

    Raises:
        AtelierError: if it is missing, or the function or the table is not what it should be.
    """
    try:
        lines = csv.reader(io.StringIO(read_limited(path, CSV_BYTES)[:CSV_BYTES].decode(), newline=""))
        return read(list(lines)[1:])
    except (OSError, ValueError, IndexError, csv.Error):
        raise AtelierError(f"{path}: missing or damaged; run 'atelier evaluate {run}' again") from None


def _curve(rows: list[list[str]]) -> Curve:
    """kimg and value of each line."""
    curve = [(float(kimg), float(value)) for kimg, value in rows]
    if not curve or not all(math.isfinite(number) for line in curve for number in line):
        raise ValueError
    return curve


def _distances(rows: list[list[str]]) -> list[tuple[str, float]]:
    """Name and distance of each class."""
    return [(name, float(value)) for name, value in rows]


def _confusion(rows: list[list[str]], class_names: list[str]) -> list[list[int]]:
    """How often each class was recognised (columns) where one was asked for (rows)."""
    counts = [[0] * len(class_names) for _ in class_names]
    for asked, recognised, images in rows:
        counts[class_names.index(asked)][class_names.index(recognised)] = int(images)
    return counts


def _data_uri(path: Path, run: str) -> str:
    content = read_limited(path, PICTURE_BYTES)
    if len(content) > PICTURE_BYTES:
        raise AtelierError(f"{path}: damaged, larger than {PICTURE_BYTES >> 20} MB; run 'atelier evaluate {run}' again")
    return _as_uri(path.suffix.removeprefix("."), content)


def _as_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

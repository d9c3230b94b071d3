"""The stage `compare`: all runs side by side in `reports/index.html` and `reports/summary.json`.

Both are the same wherever equal models are compared. What differs, times and versions, goes to `reports/local.js`: the
page shows it where that file lies beside it, and is complete without.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atelier.config import Params, Run
from atelier.config.records import ModelConfig, Registration, Report, Snapshot, VersionRecord
from atelier.errors import AtelierError
from atelier.evaluation.metrics import cautions, find_metric, metric_name
from atelier.evaluation.narrative import narrative, speed, with_deviation
from atelier.files import digest_of, read_limited, to_json, write_atomic, write_json
from atelier.journal import read_curves, read_timing, record_folder

if TYPE_CHECKING:
    from markupsafe import Markup

CURVE_BYTES, PICTURE_BYTES = 16 << 20, 128 << 20  # no honest file of a report is larger
Curves = dict[str, list[tuple[float, float]]]
PICTURES = {
    "grid.png": "Samples, a row per class if it knows classes: the first ones, not chosen.",
    "training.gif": "Training, from latents that stay the same.",
    "pictures/interpolation.png": "Between two latents, from left to right.",
    "pictures/latent-plane.png": "Over the plane of the two latent dimensions that matter most; first class.",
    "pictures/reconstructions.png": "Test images, and below each what the VAE makes of it.",
    "pictures/neighbours.png": "The samples nearest to a training image (left), and the images they are near to.",
}
ARROWS = {"low": "↓", "high": "↑"}
# fills the places of the page that are named in it
LOCAL = """const texts = {texts};
const charts = {charts};
for (const place of document.querySelectorAll("[data-local]")) {{
  const name = place.dataset.local;
  if (name in texts) place.textContent = texts[name];
  if (name in charts) place.innerHTML = charts[name];
}}
"""


@dataclass(frozen=True)
class Compared:
    """What the page says of one run.

    Attributes:
        run: as params.yaml has it by now.
        place: its name in `local.js`.
        recipe: that it was trained by.
        snapshot: which weights its result is, if that was chosen.
        report: its metrics.
        timing: the record of its training times; empty if it was trained elsewhere.
        over_training: kimg, and kernel distance of the pictures drawn then.
        megabytes: size of the sampler.
        uri: of the registered version; None if it was registered elsewhere.
        pictures: a caption and a data URI of each.
        curves: charts of its journal.
    """

    run: Run
    place: str
    recipe: dict[str, Any]
    snapshot: Snapshot | None
    report: Report
    timing: list[dict[str, float]]
    over_training: list[tuple[float, float]]
    megabytes: float
    uri: str | None
    pictures: list[tuple[str, str]]
    curves: list[Markup]

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run.name

    @property
    def kimg(self) -> float:
        """That it was trained for."""
        kimg: float = self.recipe["kimg"] if self.snapshot is None else self.snapshot.trained_kimg
        return kimg

    @property
    def notes(self) -> list[str]:
        """What is to be known of its trainings: how many, which one is shown, and why it ended."""
        found, report = list[str](), self.report
        first = report.metrics[metric_name("fd", report.extractor)]
        if first.trainings:
            found.append(
                f"{len(first.trainings)} trainings: their mean ± the standard deviation between them; that of draws "
                f"within one is {first.draws_deviation:.2g} in {metric_name('fd', report.extractor)}. Shown is seed "
                f"{self.recipe['seed']}, of the smallest validation distance."
            )
        if self.snapshot is not None and self.snapshot.kimg < self.snapshot.trained_kimg:
            found.append(f"Weights of {self.snapshot.kimg:g} kimg, of the smallest validation distance.")
        if self.snapshot is not None and self.snapshot.stopped:
            found.append(f"Ended before its time: {self.snapshot.stopped}.")
        return found

    @property
    def seconds(self) -> float:
        """That it was trained for; 0 if unknown."""
        return self.timing[-1]["seconds"] if self.timing else 0.0


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
    write_json(root / "reports" / "summary.json", summary)
    datasets = list(dict.fromkeys(run.run.dataset for run in runs))
    sections = [_of_dataset([run for run in runs if run.run.dataset == dataset]) for dataset in datasets]
    texts, charts = dict[str, str](), dict[str, str]()
    for section in sections:
        _add_local(section, texts, charts)
    local = LOCAL.format(texts=to_json(texts).rstrip(), charts=to_json(charts).rstrip())
    write_atomic(root / "reports" / "local.js", local)
    target = root / "reports" / "index.html"
    write_atomic(target, _render(params.compare.title, sections))
    for line in results_table(runs):
        say(line)
    for section in sections:
        for caution in section["cautions"]:
            say(f"{section['title']}: {caution}")
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
                f"{run.seconds:.0f} s" if run.seconds else "–",
                run.uri or "–",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _collect(run: Run, root: Path) -> Compared:
    folder, model, registered = root / "reports" / run.name, root / "models" / run.name, root / "registry"
    # what was trained, not what params.yaml says by now
    config = ModelConfig.read(model / "config.json", f"atelier train {run.name}")
    report = Report.read(folder / "metrics.json", f"atelier evaluate {run.name}")
    entry = registered / f"{run.name}.json"
    registration = Registration.read(entry, f"atelier register {run.name}")
    record = record_folder(root, run.name, report.weights_sha256)
    return Compared(
        run=run,
        place=f"{run.name} {report.weights_sha256[:16]}",
        recipe=config.recipe.model_dump(),
        snapshot=config.snapshot,
        report=report,
        timing=read_timing(record / "timing.jsonl"),
        over_training=_read_curve(folder / "curves" / f"{metric_name('kid', report.extractor)}.csv", run.name),
        megabytes=(model / "sampler.safetensors").stat().st_size / 1e6,
        uri=_version(record / "version.json", registration),
        pictures=[
            (caption, _data_uri(folder / name)) for name, caption in PICTURES.items() if (folder / name).is_file()
        ],
        curves=curves_svg(read_curves(model / "journal.jsonl")),
    )


def _version(path: Path, registration: Registration) -> str | None:
    """Which version in the workspace's store is what was registered; None if it was registered elsewhere."""
    found = VersionRecord.read(path, "atelier register") if path.is_file() else None
    return found.uri if found is not None and dict(registration).items() <= dict(found).items() else None


def _read_curve(path: Path, run: str) -> list[tuple[float, float]]:
    """kimg and value of each line."""
    try:
        rows = csv.reader(io.StringIO(read_limited(path, CURVE_BYTES)[:CURVE_BYTES].decode(), newline=""))
        curve = [(float(kimg), float(value)) for kimg, value in list(rows)[1:]]
        if curve and all(math.isfinite(number) for line in curve for number in line):
            return curve
    except (OSError, ValueError, csv.Error):
        pass
    raise AtelierError(f"{path}: missing or damaged; run 'atelier evaluate {run}' again")


def _data_uri(path: Path) -> str:
    content = read_limited(path, PICTURE_BYTES)
    if len(content) > PICTURE_BYTES:
        raise AtelierError(f"{path}: damaged, larger than {PICTURE_BYTES >> 20} MB; run 'atelier evaluate' again")
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _of_dataset(runs: list[Compared]) -> dict[str, Any]:
    """What the page says of one data set: text, a table of metrics, and how the distance fell."""
    reports = {run.name: run.report for run in runs}
    rows, glossary = [], dict[str, str]()
    for name in dict.fromkeys(name for report in reports.values() for name in report.measured):
        found = find_metric(name)
        if found is not None:
            metric, _ = found
            glossary[metric.kind] = f"{metric.title}: {metric.explanation}"
        values = [report.metrics.get(name) for report in reports.values()]
        floor = next((floor for report in reports.values() if (floor := report.floor(name))), None)
        arrow = ARROWS.get(found[0].better, f"→ {found[0].better}") if found else ""
        rows.append({"metric": name, "arrow": arrow, "values": values, "floor": floor})
    goal = max(run.over_training[-1][1] for run in runs)
    conditions = runs[0].report.conditions
    return {
        "title": runs[0].run.info.title,
        "place": digest_of("".join(run.place for run in runs).encode())[:16],
        "runs": runs,
        "text": narrative(reports),
        "cautions": list(dict.fromkeys(caution for run in runs for caution in cautions(run.report.conditions))),
        "rows": rows,
        "glossary": glossary,
        "conditions": conditions,
        "goal": goal,
        "goal_metric": metric_name("kid", runs[0].report.extractor),
        "reached": [_reached(run, goal) for run in runs],
        "over_training": over_training_svg({run.name: run.over_training for run in runs}, goal, "kimg"),
    }


def _add_local(section: dict[str, Any], texts: dict[str, str], charts: dict[str, str]) -> None:
    """Add what of a section is so in this workspace alone, by the name of its place in the page."""
    texts |= {f"{run.place} version": run.uri for run in section["runs"] if run.uri}
    timed: list[Compared] = [run for run in section["runs"] if run.seconds]
    for run in timed:
        texts[f"{run.place} seconds"] = f", {run.seconds:.0f} s"
        texts[f"{run.place} speed"] = f"{1000 * run.kimg / run.seconds:,.0f} images/s"
        kimg = _reached(run, section["goal"])
        seconds = next((line["seconds"] for line in run.timing if line["kimg"] >= kimg), None)
        if seconds is not None:
            texts[f"{section['place']} {run.place}"] = f", {seconds:.0f} s"
    if timed:
        texts[f"{section['place']} speed"] = speed([(run.name, run.seconds, run.kimg) for run in timed])
        curves = {run.name: [(_seconds_at(run, kimg), value) for kimg, value in run.over_training] for run in timed}
        charts[f"{section['place']} chart"] = over_training_svg(curves, section["goal"], "seconds")


def _reached(run: Compared, goal: float) -> float:
    """After how many kimg a run was as near as `goal` for the first time."""
    return next(kimg for kimg, value in run.over_training if value <= goal)


def _seconds_at(run: Compared, kimg: float) -> float:
    """Seconds of training when `kimg` had been seen, between the lines of the record."""
    seen, seconds = ([0.0, *(line[key] for line in run.timing)] for key in ("kimg", "seconds"))
    return float(np.interp(kimg, seen, seconds))


def _render(title: str, sections: list[dict[str, Any]]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_deviation"] = with_deviation
    return str(environment.get_template("report.html.j2").render(title=title, sections=sections))


def curves_svg(curves: Curves) -> list[Markup]:
    """Every metric of a journal over kimg: losses and bounds in one chart, shares between 0 and 1 in another.

    Not of validation, whose distances fall by orders of magnitude: `curves/` has them.
    """
    groups: tuple[Curves, Curves] = {}, {}
    for name, curve in curves.items():
        if not name.startswith("validation_"):
            groups[all(0 <= value <= 1 for _, value in curve)][name.replace("_", " ")] = curve
    return [_svg(group, "kimg") for group in groups if group]


def over_training_svg(curves: Curves, goal: float, unit: str) -> Markup:
    """The distance of each run over kimg or seconds, on a logarithmic scale."""

    def adorn(axis: Any) -> None:
        axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=max(abs(goal), 1e-6))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # its own writes powers as formulas

    return _svg(curves, unit, adorn)


def _svg(curves: Curves, x_label: str, adorn: Callable[[Any], None] = lambda axis: None) -> Markup:
    """A chart that stands in the page."""
    from markupsafe import Markup
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # else equal curves are unequal bytes; and a name with $ would be a formula
    with rc_context({"svg.hashsalt": "atelier", "text.parse_math": False}):
        figure = Figure(figsize=(4.2, 2.8))
        axis = figure.subplots()
        for name, points in curves.items():
            axis.plot(*zip(*points, strict=True), label=name.lstrip("_"))  # an underscore would hide it
        adorn(axis)
        axis.set_xlabel(x_label)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
        figure.tight_layout()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    # letters are drawn as shapes; the comments beside them repeat the text
    return Markup(re.sub("<!--.*?-->\n?", "", svg[svg.index("<svg") :], flags=re.DOTALL))

"""The stage `compare`: all runs side by side in `reports/index.html` and `reports/summary.json`.

Both are the same wherever equal models are compared. What differs, times and versions, goes to `reports/local.js`: the
page shows it where that file lies beside it, and is complete without.
"""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atelier.config import Params
from atelier.config.records import ModelConfig
from atelier.errors import InputError
from atelier.evaluation.charts import curves_svg, over_training_svg
from atelier.evaluation.narrative import narrative, speed
from atelier.evaluation.reports import FLOOR, figures, higher_is_better, metric_name
from atelier.files import digest_of, read_json, to_json, write_atomic, write_json
from atelier.journal import read_journal, record_folder

PICTURES = {
    "grid.png": "Samples, a row a class if it knows classes: the first ones, not chosen.",
    "training.gif": "Training, from latents that stay the same.",
    "pictures/interpolation.png": "Between two latents, from left to right.",
    "pictures/latent-plane.png": "Over the plane of the two latent dimensions that matter most; first class.",
    "pictures/reconstructions.png": "Test images, and below each what the VAE makes of it.",
    "pictures/neighbours.png": "The samples nearest to a training image (left), and the images they are near to.",
}


# fills the places of the page that are named in it
LOCAL = """const local = {values};
for (const place of document.querySelectorAll("[data-local]")) {{
  if (place.dataset.local in local) place.innerHTML = local[place.dataset.local];
}}
"""


def compare(params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Write the report over every run of `params.yaml` and print its table.

    Raises:
        InputError: if a run has no report yet.
    """
    runs = [_collect(name, params, root) for name in params.runs]
    summary = {run["name"]: {key: run[key] for key in ("dataset", "model", "kimg", "metrics")} for run in runs}
    write_json(root / "reports" / "summary.json", summary)
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    sections = [_of_dataset([run for run in runs if run["dataset"] == dataset]) for dataset in datasets]
    local = {key: value for section in sections for key, value in _local(section).items()}
    write_atomic(root / "reports" / "local.js", LOCAL.format(values=to_json(local).rstrip()))
    target = root / "reports" / "index.html"
    write_atomic(target, _render(params.compare.title, sections))
    for line in results_table(runs):
        say(line)
    say(f"report: {target}")
    return target


def results_table(runs: list[dict[str, Any]]) -> list[str]:
    """The figures of each run as lines of text, columns aligned: a column a kind of distance."""
    distances = list(dict.fromkeys(metric for run in runs for metric in run["distances"]))
    rows = [("run", *distances, "floor", "label agreement", "kimg", "training", "registered as")]
    rows += [
        (
            run["name"],
            *(with_deviation(run["metrics"].get(metric)) for metric in distances),
            with_deviation(run["metrics"][FLOOR + run["distances"][0]]),
            f"{run['metrics']['label_agreement']['mean']:.2%}" if "label_agreement" in run["metrics"] else "–",
            f"{run['kimg']:g}",
            f"{run['seconds']:.0f} s" if run["seconds"] else "–",
            run["uri"] or "–",
        )
        for run in runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _collect(name: str, params: Params, root: Path) -> dict[str, Any]:
    """What the report says of one run."""
    run = params.run(name)
    report, model = root / "reports" / name, root / "models" / name
    for path, stage in (
        (report / "metrics.json", "evaluate"),
        (model / "config.json", "train"),
        (root / "registry" / f"{name}.json", "register"),
    ):
        if not path.is_file():
            raise InputError(f"{path}: missing; run 'atelier {stage} {name}' first")
    # what was trained, not what params.yaml says by now
    recipe = ModelConfig.read(model / "config.json", f"atelier train {name}").recipe.model_dump()
    metrics = read_json(report / "metrics.json")
    registered = read_json(root / "registry" / f"{name}.json")
    record = record_folder(root, name, metrics["weights_sha256"])
    timing = read_journal(record / "timing.jsonl")
    extractors = list(metrics["conditions"]["extractors"])
    return {
        "name": name,
        "place": f"{name} {metrics['weights_sha256'][:16]}",
        "dataset": run.dataset,
        "dataset_title": run.info.title,
        "model": run.model,
        "source": run.entry.source,
        "kimg": recipe["kimg"],
        "recipe": recipe,
        "metrics": metrics,
        "distances": [metric_name("fd", extractor) for extractor in extractors],
        "seconds": timing[-1]["seconds"] if timing else 0.0,
        "timing": timing,
        "over_training": _read_curve(report / "curves" / f"{metric_name('kid', extractors[0])}.csv"),
        "megabytes": (model / "sampler.safetensors").stat().st_size / 1e6,
        "uri": _version(record / "version.json", registered),
        "pictures": _pictures(report),
        "curves": curves_svg(read_journal(model / "journal.jsonl")),
    }


def _version(path: Path, registered: dict[str, Any]) -> str | None:
    """Which version in the workspace's store is what was registered; None if it was registered elsewhere."""
    found = read_json(path) if path.is_file() else {}
    return found["uri"] if registered.items() <= found.items() else None


def _read_curve(path: Path) -> list[tuple[float, float]]:
    """kimg and value of each line."""
    with path.open(newline="") as file:
        return [(float(kimg), float(value)) for kimg, value in list(csv.reader(file))[1:]]


def _pictures(report: Path) -> list[tuple[str, str]]:
    """A caption and a data URI for each picture of a run, in the order of the page."""
    return [(caption, _data_uri(report / name)) for name, caption in PICTURES.items() if (report / name).is_file()]


def _of_dataset(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page says of one data set: text, a table of figures, and how the distance fell."""
    metrics = list(
        dict.fromkeys(name for run in runs for name in figures(run["metrics"]) if not name.startswith(FLOOR))
    )
    rows = [
        {
            "metric": metric,
            "higher_is_better": higher_is_better(metric),
            "values": [run["metrics"].get(metric) for run in runs],
            "floor": next((run["metrics"][FLOOR + metric] for run in runs if FLOOR + metric in run["metrics"]), None),
        }
        for metric in metrics
    ]
    goal = max(run["over_training"][-1][1] for run in runs)
    return {
        "title": runs[0]["dataset_title"],
        "place": digest_of("".join(run["place"] for run in runs).encode())[:16],
        "runs": runs,
        "text": narrative(runs),
        "rows": rows,
        "conditions": runs[0]["metrics"]["conditions"],
        "goal": goal,
        "goal_metric": metric_name("kid", next(iter(runs[0]["metrics"]["conditions"]["extractors"]))),
        "reached": [_reached(run, goal) for run in runs],
        "over_training": over_training_svg(runs, goal, "kimg"),
    }


def _local(section: dict[str, Any]) -> dict[str, str]:
    """What of a section is so in this workspace alone, as HTML, by the name of its place in the page."""
    found = {f"{run['place']} version": run["uri"] for run in section["runs"] if run["uri"]}
    timed = [run for run in section["runs"] if run["timing"]]
    for run in timed:
        found[f"{run['place']} seconds"] = f", {run['seconds']:.0f} s"
        found[f"{run['place']} speed"] = f"{1000 * run['kimg'] / run['seconds']:,.0f} images/s"
        kimg = _reached(run, section["goal"])
        seconds = next((line["seconds"] for line in run["timing"] if line["kimg"] >= kimg), None)
        if seconds is not None:
            found[f"{section['place']} {run['place']}"] = f", {seconds:.0f} s"
    if timed:
        found[f"{section['place']} speed"] = speed(timed)
        found[f"{section['place']} chart"] = over_training_svg(timed, section["goal"], "seconds")
    return found


def _reached(run: dict[str, Any], goal: float) -> float:
    """After how many kimg a run was as near as `goal` for the first time."""
    first: float = next(kimg for kimg, value in run["over_training"] if value <= goal)
    return first


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


def with_deviation(value: dict[str, Any] | None) -> str:
    """Mean ± standard deviation, to the digit that the deviation leaves certain."""
    if value is None:
        return "–"
    if value["deviation"] == 0:  # the same in each draw
        return f"{value['mean']:.3g}"
    digits = 2 if abs(value["mean"]) < 1000 else 0
    if value["deviation"] < 1:
        digits = min(max(digits, -math.floor(math.log10(value["deviation"]))), 5)
    return f"{value['mean']:.{digits}f} ± {value['deviation']:.{digits}f}"


def _data_uri(path: Path) -> str:
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

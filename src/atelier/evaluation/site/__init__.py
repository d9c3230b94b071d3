"""The page over all runs: what it is told, and how that becomes one file that opens from disk, without a network.

Scripts and styles are the files beside this one, put into the page as they are. Those of uPlot are
`npm pack uplot@1.6.32`, package/dist/ and package/LICENSE, unchanged.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.config.records import Conditions, Gallery

if TYPE_CHECKING:
    import jinja2

STYLES = ("uPlot.min.css", "style.css")
SCRIPTS = (
    *("uPlot.iife.min.js", "dom.js", "data.js", "figures.js", "charts.js", "samples.js", "map.js"),
    *("overview.js", "run.js", "together.js", "main.js"),
)
LICENCE = "uPlot.LICENSE.txt"
Curve = list[tuple[float, float]]  # kimg and value


@dataclass(frozen=True)
class Value:
    """A metric of a run, or of its floor."""

    mean: float
    deviation: float
    error: float  # standard error of the mean
    text: str  # mean and deviation, to the digits that are certain


@dataclass(frozen=True)
class MetricText:
    """A row of the table of metrics, for one extractor."""

    title: str
    features: str | None  # that it is measured in
    group: str
    better: str
    explanation: str


@dataclass(frozen=True)
class Picture:
    """A picture of a run and what it shows."""

    caption: str
    image: str  # its name among the images of the run


@dataclass(frozen=True)
class RunPage:
    """What the page says of one run; `place` is its name in `local.js`."""

    name: str
    place: str
    dataset: str
    model: str
    source: str
    kimg: float
    notes: list[str]  # on its trainings
    megabytes: float
    class_names: list[str]
    height: int
    width: int
    recipe: dict[str, Any]
    digests: dict[str, str]
    values: dict[str, Value]
    curves: dict[str, Curve]
    by_class: list[tuple[str, float]]  # Fréchet distance
    confusion: list[list[int]]  # asked → recognised
    gallery: Gallery
    copies: list[int]  # of the samples in the gallery
    steps: list[float]  # kimg of the pictures of training, sheets of `rows` × `columns`
    rows: int
    columns: int
    pictures: list[Picture]
    images: dict[str, str] = field(repr=False)  # data URIs by name


@dataclass(frozen=True)
class DatasetPage:
    """What the page says of the runs on one data set."""

    name: str
    title: str
    runs: list[str]
    text: list[str]
    cautions: list[str]
    leading: str  # metric
    over_training: str  # metric, among the curves of each run
    floors: dict[str, Value]
    incomparable: dict[str, str]  # metrics by which these runs cannot be compared, and why
    conditions: Conditions


@dataclass(frozen=True)
class Page:
    """What the page says."""

    title: str
    sure: float  # standard errors of a difference that count as one
    groups: dict[str, str]
    metrics: dict[str, MetricText]
    datasets: list[DatasetPage]
    runs: list[RunPage]


def render(page: Page) -> str:
    """The page as HTML; what is not ours stands in it as JSON, which its scripts show as text."""
    folder = Path(__file__).parent
    template = page_template(folder)
    styles, scripts = ([(folder / name).read_text() for name in names] for names in (STYLES, SCRIPTS))
    content = _plain(page)
    images = {run["name"]: run.pop("images") for run in content["runs"]}
    return str(
        template.render(
            title=page.title,
            styles=styles,
            scripts=scripts,
            licence=(folder / LICENCE).read_text(),
            data=script_json(content),
            images={name: script_json(of_run) for name, of_run in images.items()},
        )
    )


def page_template(folder: Path) -> jinja2.Template:
    """`page.html.j2` of a folder; what is put into it is text, unless it says otherwise."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _plain(value: Any) -> Any:
    """What JSON can say of dataclasses and records."""
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Gallery | Conditions):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def script_json(value: Any) -> str:
    """JSON that ends no script, whatever it holds."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")

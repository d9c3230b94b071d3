"""The interface for notebooks and scripts: `atelier.Workspace`, `atelier.load`, `atelier.Model`.

What the commands do, with objects in place of files where there is something to look at. Mistakes are `InputError`,
failures `AtelierError`, each of one line. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import InputError, shown

if TYPE_CHECKING:
    from atelier.config import Params
    from atelier.config.records import Report
    from atelier.registry.promote import Decision
    from atelier.registry.sample import Pictures
    from atelier.sampler import Sampler

__all__ = ["Model", "Table", "Workspace", "load"]


def _say(message: str) -> None:
    print(shown(message), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Table:
    """Rows under headings; text in a terminal, a table in a notebook.

    Attributes:
        columns: the headings.
        rows: as many cells each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        return "\n".join(aligned([self.columns, *self.rows]))

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.columns, 'th')}</thead><tbody>{body}</tbody></table>"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def train(
    run: str,
    params: Params,
    root: Path,
    say: Callable[[str], None],
    on_tick: Callable[[dict[str, float]], None] | None = None,
    **options: Any,
) -> Path | None:
    """Train a run from what its `init` names, once the weights that it will be judged by are there.

    The options are those of `atelier.training.train.train`.
    """
    dataset = params.run(run).dataset
    from atelier.evaluation.weights import ensure_weights
    from atelier.registry.parent import parent_of

    ensure_weights(params.extractors(dataset), dataset, params, root)
    from atelier.training.train import train

    with parent_of(run, params, root):
        return train(run, params, root, say, on_tick=on_tick, **options)


class Workspace:
    """A folder with a `params.yaml`, and what stages make there; each method does what the command of its name does.

    Args:
        root: the folder.
        changes: what of the parameters to change, by key: `{"runs.mnist-cgan.kimg": 50}`.
        say: told a line at a time what goes on; standard error if left out.

    Raises:
        InputError: if there is no such folder, or its parameters are wrong.
    """

    def __init__(
        self,
        root: Path | str = ".",
        changes: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = _say,
    ) -> None:
        import json

        from atelier.config import load_params

        self.root, self.say = Path(root).absolute(), say  # a notebook may go to another folder
        overrides = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
        self.params = load_params(self.root / "params.yaml", overrides, self.root)

    @property
    def runs(self) -> Table:
        """How far each run has come."""
        from atelier.runs import COLUMNS, run_states

        return Table(COLUMNS, tuple(one.line for one in run_states(self.params, self.root)))

    def ingest(self, dataset: str) -> Path:
        """Fetch the raw files of a data set; returns their folder."""
        from atelier.data.ingest import ingest

        self.params.dataset(dataset)
        return ingest(dataset, self.params, self.root, self.say)

    def prepare(self, dataset: str) -> Path:
        """Turn raw files into arrays; returns their folder."""
        from atelier.data.prepare import prepare

        self.params.dataset(dataset)
        return prepare(dataset, self.params, self.root)

    def reference(self, dataset: str) -> Path:
        """Make what models of a data set are judged by; returns its folder."""
        self.params.dataset(dataset)
        self.params.require_extractors()
        from atelier.evaluation.reference import reference

        return reference(dataset, self.params, self.root, self.say)

    def train(self, run: str, on_tick: Callable[[dict[str, float]], None] | None = None) -> Model | None:
        """Train a run; one that was stopped goes on from its last checkpoint.

        Args:
            run: its name.
            on_tick: told the figures once a tick, `train.tick_kimg`: `kimg`, `seconds`, `images_per_second`, and those
                that the journal has. What it raises ends the training, which can be gone on with.

        Returns:
            The model; None in a process of `torchrun` that is not the first.
        """
        made = train(run, self.params, self.root, self.say, on_tick)
        return None if made is None else self.model(run)

    def evaluate(self, run: str) -> Report | None:
        """Judge a trained run; `report.metrics["fd_classifier"].mean` is a figure of it. None as for `train`."""
        self.params.run(run)
        self.params.require_extractors()
        from atelier.evaluation.evaluate import evaluate

        return None if evaluate(run, self.params, self.root, self.say) is None else self.report(run)

    def report(self, run: str) -> Report:
        """What `evaluate` found."""
        from atelier.config.records import Report

        return Report.read(self.root / "reports" / run / Report.file, f"atelier evaluate {run}")

    def compare(self, runs: Iterable[str] | None = None) -> Table:
        """The metrics of judged runs side by side, all that params.yaml has if left out: mean ± standard deviation."""
        from atelier.evaluation.narrative import with_deviation

        reports = {run: self.report(run) for run in (self.params.runs if runs is None else runs)}
        metrics = dict.fromkeys(name for report in reports.values() for name in report.measured)
        rows = [(name, *(with_deviation(report.metrics.get(name)) for report in reports.values())) for name in metrics]
        return Table(("metric", *reports), tuple(rows))

    def page(self) -> Path:
        """Write the report over all runs, `reports/index.html`; returns it."""
        from atelier.evaluation.compare import compare

        return compare(self.params, self.root, self.say)

    def register(self, run: str) -> str:
        """Make a trained and judged run a version in the MLflow registry; returns its URI."""
        from atelier.registry.register import register
        from atelier.runs import run_state

        self.params.run(run)
        register(run, self.params, self.root, self.say)
        uri = run_state(run, self.params, self.root).uri
        assert uri is not None
        return uri

    def promote(self, name: str, version: int | None = None, alias: str = "champion") -> Decision:
        """Make a version of a registered model, the newest if left out, the champion if it passes the gates.

        Raises:
            GatesNotPassed: if it does not; its `decision` says which.
        """
        from atelier.registry.promote import promote

        return promote(name, version, alias, self.params.promote, self.root, self.say)

    def model(self, run: str) -> Model:
        """The trained model of a run."""
        return load(f"models/{run}", self.root)


class Model:
    """A trained model, to draw from.

    Attributes:
        sampler: what draws.
        version: `models:/NAME/VERSION`, if it came from the registry.
    """

    def __init__(self, sampler: Sampler, version: str | None) -> None:
        self.sampler, self.version = sampler, version

    def __repr__(self) -> str:
        config, name = self.sampler.config, self.version or f"models/{self.sampler.config.run}"
        return f"<{name}: {config.model} on {config.dataset}, {config.recipe.kimg:g} kimg>"

    @property
    def class_names(self) -> list[str]:
        """What `label` stands for; empty if it was trained without."""
        return self.sampler.class_names

    def draw(
        self, n: int = 100, *, label: int | None = None, seed: int = 0, first: int = 0, truncation: float | None = None
    ) -> Pictures:
        """Draw images: those of a seed from number `first` on, of one class, or of each in turn.

        With `truncation` no component of the noise is larger: less variety, fewer failures.
        """
        from atelier.registry.sample import draw

        return draw(self.sampler, self.version, n, seed, label, truncation, first)

    def interpolate(self, steps: int = 8, *, n: int = 1, label: int | None = None, seed: int = 0) -> Pictures:
        """Draw `n` rows of images on the way from one latent of a seed to another, each row of a class."""
        import numpy as np
        import torch

        from atelier.evaluation.paths import ways
        from atelier.mark import Mark
        from atelier.registry.sample import Pictures

        labels = self.sampler.labels(n, label)
        images = ways(self.sampler, seed, n, steps, None if labels is None else torch.from_numpy(labels))
        mark = Mark.of(self.sampler.config, version=self.version, seed=seed, label=label)
        return Pictures(images, np.repeat(np.full(n, -1) if labels is None else labels, steps), mark, steps)


def load(uri: str, root: Path | str = ".") -> Model:
    """A trained model by `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or its folder; nothing in it is run.

    Args:
        uri: of the model.
        root: the workspace, whose MLflow store is asked unless MLFLOW_TRACKING_URI names another, and whose code a
            model of one's own is built by.

    Raises:
        InputError: if there is no such model, or it is built by code that is not here.
        AtelierError: if MLflow does not answer, or the weights were altered.
    """
    from atelier.registry.sample import folder_of
    from atelier.sampler import Sampler

    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give root=, the folder of a workspace")
    with folder_of(uri, root) as (folder, version):
        return Model(Sampler.load(folder, root), version)

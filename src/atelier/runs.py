"""`atelier runs list | show | delete`: what a workspace holds of each run, those too that params.yaml has no more."""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier.config import Params
from atelier.config.reading import nearest
from atelier.config.records import ModelConfig, Registration, Report, VersionRecord
from atelier.errors import AtelierError, InputError
from atelier.files import files_below, hold, remove_folder
from atelier.journal import record_folder

# what stages and DVC leave of a run
PLACES = ("models/{}", "reports/{}", "registry/{}.json", "checkpoints/{}", "runs/{}")
State = Literal["planned", "in training", "trained", "judged", "registered", "damaged"]


@dataclass(frozen=True)
class RunState:
    """How far a run has come.

    Attributes:
        in_params: whether params.yaml has it.
        dataset: that it is trained on, as is its model: of what was trained, else of params.yaml; empty if unknown.
        kimg: that it was trained for, or is to be.
        metrics: means by name; empty if what lies there was not judged.
        uri: of the version in this workspace's store; None if it is not registered there.
        megabytes: of all that lies there.
    """

    name: str
    state: State
    in_params: bool
    dataset: str
    model: str
    kimg: float | None
    metrics: dict[str, float]
    uri: str | None
    megabytes: float

    @property
    def line(self) -> tuple[str, ...]:
        """In words, as a row of a table."""
        first = next((f"{name} {value:.4g}" for name, value in self.metrics.items()), "–")
        state = self.state if self.in_params else f"{self.state}, not in params.yaml"
        kimg = "–" if self.kimg is None else f"{self.kimg:g}"
        return (self.name, self.dataset or "–", self.model or "–", kimg, state, first, self.uri or "–")


COLUMNS = ("run", "data set", "model", "kimg", "state", "distance", "registered as")


def run_states(params: Params, root: Path) -> list[RunState]:
    """Every run of `params.yaml` in its order, then those of which only something lies there."""
    left = {path.name for folder in ("models", "reports") for path in (root / folder).glob("[!.]*") if path.is_dir()}
    left |= {path.stem for path in (root / "registry").glob("[!.]*.json")}
    return [run_state(name, params, root) for name in [*params.runs, *sorted(left - params.runs.keys())]]


def run_state(name: str, params: Params, root: Path) -> RunState:
    """How far one run has come.

    Raises:
        InputError: if neither `params.yaml` nor the workspace has it.
    """
    held = _places(name, root)
    if name not in params.runs and not held:
        raise InputError(f"{name}: no such run in params.yaml or in {root}{nearest(name, params.runs)}")
    size = sum(file.stat().st_size for path in held for file in (files_below(path) if path.is_dir() else [path]))
    found = RunState(name, "planned", name in params.runs, "", "", None, {}, None, size / 1e6)
    if name in params.runs:
        run = params.run(name)
        found = dataclasses.replace(found, dataset=run.dataset, model=run.model, kimg=run.recipe.kimg)
    try:
        return _made(found, root)
    except AtelierError:
        return dataclasses.replace(found, state="damaged")


def _made(planned: RunState, root: Path) -> RunState:
    """The same with what was made of it."""
    model, report = root / "models" / planned.name, root / "reports" / planned.name / Report.file
    registered = root / "registry" / f"{planned.name}.json"
    if not (model / "config.json").is_file():
        begun = (root / "checkpoints" / planned.name).is_dir()
        return dataclasses.replace(planned, state="in training") if begun else planned
    config = ModelConfig.read(model / "config.json", f"atelier train {planned.name}")
    found = dataclasses.replace(
        planned, state="trained", dataset=config.dataset, model=config.model, kimg=config.recipe.kimg
    )
    if not report.is_file():
        return found
    judged = Report.read(report, f"atelier evaluate {planned.name}")
    if judged.weights_sha256 != config.sampler_sha256:  # of the model before
        return found
    metrics = {name: value.mean for name, value in judged.measured.items()}
    found = dataclasses.replace(found, state="judged", metrics=metrics)
    if not registered.is_file():
        return found
    registration = Registration.read(registered, f"atelier register {planned.name}")
    if registration.weights_sha256 != config.sampler_sha256:
        return found
    version = record_folder(root, planned.name, config.sampler_sha256) / "version.json"
    uri = VersionRecord.read(version, f"atelier register {planned.name}").uri if version.is_file() else None
    return dataclasses.replace(found, state="registered", uri=uri)


def _places(name: str, root: Path) -> list[Path]:
    paths = [root / place.format(name) for place in PLACES]
    return [path for path in paths if os.path.lexists(path)]


def delete(name: str, params: Params, root: Path, *, really: bool) -> list[Path]:
    """Remove what a workspace holds of a run that `params.yaml` has no more; returns it.

    Args:
        name: of the run.
        params: of the workspace.
        root: the workspace.
        really: else nothing is removed.

    Raises:
        InputError: if `params.yaml` has it, or there is nothing of it.
        AtelierError: if another process is writing something of it.
    """
    if name in params.runs:
        raise InputError(f"{name}: params.yaml has it, and 'dvc repro' would make it again; take it out there first")
    run_state(name, params, root)
    held = _places(name, root)
    if really:
        with ExitStack() as stack:
            for path in held:
                stack.enter_context(hold(path))
            for path in held:
                remove_folder(path) if path.is_dir() else path.unlink()
    return held

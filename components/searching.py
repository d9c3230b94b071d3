"""A search as a step of a pipeline: its trials are TrainJobs, or processes of the step."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from atelier.components.launcher import Launcher, api_client, training_job
from atelier.components.workspace import (
    FAILURES,
    WORKSPACES,
    Artifact,
    errors_in_one_line,
    fill,
    run_command,
    take,
    workspace,
    write_html,
)
from atelier.config import load_params
from atelier.errors import InputError
from atelier.search import TRAIN, best_of, importances, open_study, search, table

GONE_SECONDS = 60.0  # after which a cut trial's nodes are no longer waited for


def run_search(
    name: str,
    params: Mapping[str, Any],
    data: Iterable[Artifact],
    found: Artifact,
    page: Artifact,
    image: str,
    gpus: int,
    deadline_hours: float,
) -> None:
    """Run a search to its end; a step that is tried again goes on with it where it has a volume.

    Args:
        name: of the search.
        params: its params.yaml, with the run that is varied.
        data: prepared.
        found: gets the folder of the search.
        page: gets the trials as a table.
        image: of the trials' TrainJobs; empty: trials are processes of this step.
        gpus: of each TrainJob.
        deadline_hours: of each TrainJob.
    """
    with errors_in_one_line():
        if image and WORKSPACES not in os.environ:
            raise InputError("trials as TrainJobs need a volume that they share: compile with --volume")
        with workspace(f"search-{name}") as root:
            fill(root, params, data)
            command = [sys.executable, "-m", "atelier.components.searching", "search", name, str(root)]
            run_command(command + ([image, str(gpus), str(deadline_hours)] if image else []))
            _write_table(name, root, page)
            take(root, {f"search/{name}": found})


def _search(name: str, folder: str, *job: str) -> None:
    """Run the trials in a workspace; `job` is the image, GPUs and deadline of each as a TrainJob."""
    root = Path(folder)
    train = ("atelier.components.searching", "trial", *job) if job else TRAIN
    search(name, load_params(root / "params.yaml", (), root), root, lambda line: print(line, flush=True), train)


def _trial(
    image: str, gpus: str, deadline_hours: str, run: str, _root: str, root: str, _params: str, file: str
) -> None:
    """Train a trial as a TrainJob of a node, on the volume; SIGTERM deletes it."""
    api = api_client()
    job = training_job(api, run, (run, root, file), image, 1, int(gpus), float(deadline_hours))
    launcher = Launcher(job, lambda line: print(line, flush=True), api, Path(root) / FAILURES / run)
    try:
        launcher.run()
    except SystemExit:
        launcher.wait_until_gone(GONE_SECONDS)
        raise


def _write_table(name: str, root: Path, page: Artifact) -> None:
    """The trials, the best first, which keys matter, and the best values, for Kubeflow's page of the run."""
    params = load_params(root / "params.yaml", (), root)
    study = open_study(name, params, root)
    rows = table(study, params.search_of(name).keys)
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    shares = "".join(f"<li>importance of {html.escape(key)}: {share:.0%}" for key, share in importances(study).items())
    best = html.escape(str(best_of(study, name).params))
    write_html(page, f"search {name}", f"<table>{cells}</table><ul>{shares}</ul><p>best: {best}")


if __name__ == "__main__":
    with errors_in_one_line():
        what, *arguments = sys.argv[1:]
        commands: dict[str, Callable[..., None]] = {"search": _search, "trial": _trial}
        commands[what](*arguments)

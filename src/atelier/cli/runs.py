"""`atelier runs …`: the runs of a workspace."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atelier.cli.options import Commands, aligned, require_root, root_option, say, show, with_params

if TYPE_CHECKING:
    from atelier.config import Params


@click.group(cls=Commands)
def runs() -> None:
    """Look after runs in the workspace and in MLflow."""


@runs.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as JSON.")
@with_params
def list_command(as_json: bool, params: Params, root: Path) -> None:
    """List the runs: how far each has come, and those that params.yaml has no more."""
    from atelier.runs import COLUMNS, run_states

    found = run_states(params, root)
    if as_json:
        show(json.dumps([dataclasses.asdict(one) for one in found]))
        return
    for line in aligned([COLUMNS, *(one.line for one in found)]):
        show(line)


@runs.command("show")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@with_params
def show_command(run: str, as_json: bool, params: Params, root: Path) -> None:
    """Show one run: what it is, its metrics, what of it lies in the workspace."""
    from atelier.runs import run_state

    found = dataclasses.asdict(run_state(run, params, root))
    if as_json:
        show(json.dumps(found))
        return
    metrics = found.pop("metrics")
    for line in aligned([(name, "–" if value in (None, "") else str(value)) for name, value in found.items()]):
        show(line)
    for line in aligned([(name, f"{value:.4g}") for name, value in metrics.items()] or [("no metrics",)]):
        show(f"  {line}")


@runs.command()
@click.argument("run")
@click.option("--yes", is_flag=True, help="Remove it; without this, only show what would go.")
@with_params
def delete(run: str, yes: bool, params: Params, root: Path) -> None:
    """Remove what the workspace holds of a run that params.yaml has no more.

    Its versions and runs in MLflow stay, and so does what DVC's cache holds.
    """
    from atelier.runs import delete

    for path in delete(run, params, root, really=yes):
        show(str(path))
    say(f"{run}: removed" if yes else f"{run}: nothing was removed; --yes removes these")


@runs.command("close")
@click.option(
    "--older-than",
    "hours",
    type=click.FloatRange(min=0),
    help="Also those of other machines that began more than this many hours ago.",
)
@root_option
def close(hours: float | None, root: Path) -> None:
    """Mark runs in MLflow as KILLED that still say RUNNING although their training was killed."""
    require_root(root)
    from atelier.tracking.runs import close_runs

    print(f"{close_runs(root, say, hours)} runs closed")


@click.command()
@click.argument("name")
@click.option("--show", "is_shown", is_flag=True, help="Train nothing; print the trials that there are.")
@click.option("--adopt", "is_adopted", is_flag=True, help="Write the best settings into the run in the parameter file.")
@with_params
def search(name: str, is_shown: bool, is_adopted: bool, params: Params, root: Path) -> None:
    """Try settings of a run, as the section 'search' of params.yaml defines it, and print the trials, the best first.

    A search that was stopped goes on with the same command.
    """
    from atelier import search as searching
    from atelier.notify import notified

    if is_shown or is_adopted:
        study = searching.open_study(name, params, root)
    else:
        with notified(params.notify, f"search {name}", say, tells_end=True):
            study = searching.search(name, params, root, say)
    keys = list(params.search_of(name).keys)
    for line in aligned(searching.table(study, keys)):
        show(line)
    best = searching.best_of(study, name)
    for key, share in searching.importances(study).items():
        show(f"importance of {key}: {share:.0%}")
    file = root / click.get_current_context().params["params_file"]
    settings = searching.adopt(study, name, params, file) if is_adopted else best.params
    show(f"{params.search_of(name).run}: {json.dumps(params.runs[params.search_of(name).run] | settings)}")


@click.command()
@with_params
def status(params: Params, root: Path) -> None:
    """Show the stages that run in this workspace now, and how far each training is."""
    from atelier.watch import running

    found = running(params, root)
    for line in aligned([("stage", "progress", "by"), *(one.line for one in found)] if found else [("nothing runs",)]):
        show(line)


@click.command()
@click.argument("run")
@with_params
def watch(run: str, params: Params, root: Path) -> None:
    """Show a training as it goes on: its figures as curves and the last picture, until it ends."""
    from atelier.watch import in_place, watch

    is_terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns
    in_place(watch(run, params, root, columns, is_terminal), lambda text: print(text, end="", flush=True), is_terminal)

"""The command `atelier`. Nothing heavy is imported before it is needed: help and usage errors are instant."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atelier import __version__
from atelier.cli.options import Commands, aligned, require_root, root_option, say, show, stage, with_params
from atelier.cli.pipeline import pipeline, schedule
from atelier.cli.registry import history, playground, promote, publish, reproduce, rollback, sample, whence
from atelier.cli.runs import runs, search, status, watch
from atelier.cli.workspace import demo, docs, gc, init, merge, repro, upgrade
from atelier.errors import AtelierError, ToldByWriter, is_out_of_memory

if TYPE_CHECKING:
    from atelier.config import Params


# what helps against errors of the file system whose name does not say it
REMEDIES = {
    errno.EACCES: "allow this user to read and write there",
    errno.EPERM: "allow this user to read and write there",
    errno.EISDIR: "move that folder away",
    errno.ENOTDIR: "move that file away",
    errno.EROFS: "give --root of a place that can be written to",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="atelier", message="%(prog)s %(version)s")
def app() -> None:
    """Train image generators as one reproducible pipeline.

    The stages, in order: plan, ingest, prepare, reference, train, evaluate, register, compare. `dvc repro` runs them
    all.
    """


@app.command()
@stage
def plan(params: Params, root: Path) -> None:
    """Write which code and parameters each stage depends on, so that DVC runs again what has changed."""
    from atelier.plan import plan

    if any(params.run(name).init for name in params.runs):
        from atelier.registry.parent import note_parents

        note_parents(params, root, say)
    print(plan(params, root))


@app.command()
@click.argument("dataset")
@stage
def ingest(dataset: str, params: Params, root: Path) -> None:
    """Fetch the raw files of a data set from the first source that has them, and verify them by digest."""
    params.dataset(dataset)
    from atelier.data.ingest import ingest

    print(ingest(dataset, params, root, say))


@app.command()
@click.argument("dataset")
@stage
def prepare(dataset: str, params: Params, root: Path) -> None:
    """Turn raw files into arrays, a card and a contact sheet."""
    params.dataset(dataset)
    from atelier.data.prepare import prepare

    print(prepare(dataset, params, root))


@app.command()
@click.argument("dataset")
@stage
def reference(dataset: str, params: Params, root: Path) -> None:
    """Measure the real images, and what a perfect model would get: what models are judged by."""
    params.dataset(dataset)
    params.require_extractors()
    from atelier.evaluation.reference import reference

    print(reference(dataset, params, root, say))


@app.command()
@click.argument("run")
@click.option(
    "--only-seed",
    type=int,
    help="Train only this seed of a run with several; a start without it then publishes the run.",
)
@click.option(
    "--allow-other-world-size", is_flag=True, help="Go on from a checkpoint that another number of processes wrote."
)
@with_params
def train(
    run: str, params: Params, root: Path, only_seed: int | None = None, allow_other_world_size: bool = False
) -> None:
    """Train a run; a training that was stopped goes on from its last checkpoint."""
    params.run(run)
    from atelier.api import train
    from atelier.notify import notified

    with notified(params.notify, f"train {run}", say, tells_end=True) as tell:
        _show(train(run, params, root, tell, only_seed=only_seed, allow_other_world_size=allow_other_world_size))


@app.command()
@click.argument("run")
@stage
def evaluate(run: str, params: Params, root: Path) -> None:
    """Judge a trained run against the real test images: metrics, curves and pictures."""
    params.run(run)
    params.require_extractors()
    from atelier.evaluation.evaluate import evaluate

    _show(evaluate(run, params, root, say))


def _show(made: Path | None) -> None:
    """Print where a result is; ranks that are not the first have none."""
    if made is not None:
        show(str(made))


@app.command()
@click.argument("run")
@stage
def register(run: str, params: Params, root: Path) -> None:
    """Make a trained and judged run a version in the MLflow registry."""
    params.run(run)
    from atelier.registry.register import register

    print(register(run, params, root, say))


@app.command()
@stage
def compare(params: Params, root: Path) -> None:
    """Write the report over all runs and print its table."""
    from atelier.evaluation.compare import compare

    compare(params, root, show)


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print the parameter counts of each model's networks as JSON.")
@root_option
def models(as_json: bool, root: Path) -> None:
    """List the models with their sources, data and parameter counts; the workspace's own and installed ones last.

    Counts are of trainable parameters at each model's default sizes, for the images it was made for.
    """
    require_root(root)
    from atelier.models import count_parameters
    from atelier.models.own import all_models

    found = list(all_models(root))
    counts = {code.name: count_parameters(code) for code in found}
    if as_json:
        import json

        print(json.dumps(counts))
        return
    ranges = {"symmetric": "[-1, 1]", "unit": "[0, 1]"}
    rows = [("name", "made for", "range", "labels", "parameters", "source")]
    for code in found:
        name, entry = code.name, code.entry
        image = f"{entry.home.height}x{entry.home.width}x{entry.home.channels}"
        labels = f"{entry.labels} (off)" if entry.labels == "optional" and not entry.recipe.labels else entry.labels
        networks = ", ".join(f"{role} {count:,}" for role, count in counts[name].items())
        rows.append((name, image, ranges[entry.data_range], labels, networks, entry.source))
    for line in aligned(rows):
        print(line)


for command in (
    init,
    demo,
    docs,
    upgrade,
    merge,
    repro,
    gc,
    sample,
    playground,
    publish,
    whence,
    promote,
    rollback,
    history,
    reproduce,
    runs,
    search,
    status,
    watch,
    pipeline,
    schedule,
):
    app.add_command(command)


@app.group()
def data() -> None:
    """Look after data sets."""


@data.command("check")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@root_option
def check(dataset: str, as_json: bool, root: Path) -> None:
    """Verify raw and prepared files of DATASET against its card, byte for byte."""
    require_root(root)
    from atelier.data.arrays import check

    found = check(dataset, root)
    if as_json:
        import json

        print(json.dumps(vars(found)))
    if found.problems:
        for problem in found.problems:
            say(problem)
        raise AtelierError(
            f"{dataset}: {len(found.problems)} problems; mend them with 'dvc checkout', 'dvc pull' or 'dvc repro'"
        )
    if not as_json:
        print(f"{dataset}: {found.files} files as the card says, {found.images} images")


def main() -> Any:
    """Entry point: every error is one line on standard error; exit code 2 for wrong input, 1 for a failure."""
    _open_closed_streams()
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"  # what Docker gives a user without a name and a home; MLflow and torch ask for one
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that wait for each other spin for some microseconds, then sleep: the default of some milliseconds is a
        # sixth faster on idle cores, and brings a training to a standstill on busy ones
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)  # the help, of many lines
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "atelier"
        say(f"atelier: {' '.join(error.format_message().split())} (see '{where} --help')")
        return 2
    except ToldByWriter as error:
        return error.exit_code
    except AtelierError as error:
        say(f"atelier: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("atelier: interrupted")
        return 130
    except OSError as error:
        # a file that is written beside its place is told by its own name
        name = re.sub(r"/\.([^/]+?)(\.\d+)?\.partial(\.\w+)?$", r"/\1\3", str(error.filename or "file system"))
        remedy = REMEDIES.get(error.errno or 0)
        say(f"atelier: {name}: {error.strerror or error}{f'; {remedy}, and run it again' if remedy else ''}")
        return 1
    except MemoryError as error:
        say(f"atelier: not enough memory: {error}")
        return 1
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        say(f"atelier: not enough memory for these networks and batches; lower batch, width or latent ({error})")
        return 1


def _open_closed_streams() -> None:
    """Standard output or error that was closed (`2>&-`) swallows what is written, and no file takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))

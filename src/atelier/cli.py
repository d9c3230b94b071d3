"""The command `atelier`. Nothing heavy is imported before it is needed: help and usage errors are instant."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atelier import __version__
from atelier.errors import AtelierError, InputError
from atelier.pipeline_cli import pipeline, schedule

if TYPE_CHECKING:
    from atelier.params import Params


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="atelier", message="%(prog)s %(version)s")
def app() -> None:
    """Train image generators as one reproducible pipeline.

    The stages, in order: ingest, prepare, reference, train, evaluate, register, compare. `dvc repro` runs them all.
    """


app.add_command(pipeline)
app.add_command(schedule)


def stage(function: Callable[..., None]) -> Callable[..., None]:
    """Give a stage's command its options; the function gets the validated parameters and the workspace."""

    @functools.wraps(function)
    def command(root: Path, params_file: Path, overrides: tuple[str, ...], **arguments: Any) -> None:
        function(**arguments, params=load(root, params_file, overrides), root=root)

    for option in (
        overrides_option,
        click.option(
            "--params",
            "params_file",
            type=Path,
            default="params.yaml",
            show_default=True,
            help="Parameter file, relative to --root.",
        ),
        root_option,
    ):
        command = option(command)
    return command


root_option = click.option(
    "--root",
    type=Path,
    default=".",
    show_default=True,
    help="The workspace: data, models and reports lie below it.",
)


overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a parameter; repeatable."
)

reason_option = click.option("--reason", default="", metavar="TEXT", help="Recorded in the history.")


def alias_option(flag: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which alias of a registered model is meant."""
    return click.option(flag, "alias", default="champion", show_default=True, callback=_check_alias, help="The alias.")


def _check_alias(context: click.Context, parameter: click.Parameter, alias: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", alias) or re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE):
        raise click.BadParameter(f"'{alias}': letters, digits, '-' and '_', a letter first; not 'latest' or 'v1'")
    return alias


def require_root(root: Path) -> None:
    """The workspace must be a folder."""
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")


def load(root: Path, params_file: Path, overrides: tuple[str, ...]) -> Params:
    """Read the parameters of a workspace."""
    from atelier.params import load_params

    require_root(root)
    return load_params(root / params_file, overrides)


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
    """Make what distances are measured with: extractors, real statistics, the floor."""
    params.dataset(dataset)
    params.require_extractors()
    from atelier.evaluation.reference import reference

    print(reference(dataset, params, root, say))


@app.command()
@click.argument("run")
@stage
def train(run: str, params: Params, root: Path) -> None:
    """Train a run; a training that was stopped goes on from its last checkpoint."""
    from atelier.evaluation.weights import ensure_weights

    dataset = params.run(run).dataset
    ensure_weights(params.extractors(dataset), dataset, params, root)
    from atelier.training.train import train

    print(train(run, params, root, say))


@app.command()
@click.argument("run")
@stage
def evaluate(run: str, params: Params, root: Path) -> None:
    """Judge a trained run: distances with deviations, label agreement, pictures."""
    params.run(run)
    params.require_extractors()
    from atelier.evaluation.evaluate import evaluate

    print(evaluate(run, params, root, say))


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

    compare(params, root, print)


@app.command()
@click.argument("model")
@click.option("--n", type=click.IntRange(min=1), default=100, show_default=True, help="How many images.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    show_default=True,
    help="The same seed, the same images.",
)
@click.option("--label", type=click.IntRange(min=0), help="One class; each in turn if left out.")
@click.option("--truncation", type=float, help="Noise no larger than this: less variety, fewer failures.")
@click.option(
    "--out",
    type=Path,
    required=True,
    help="FILE.npz (images uint8 (n, h, w, c), labels) or FILE.png (a grid).",
)
@root_option
def sample(model: str, n: int, seed: int, label: int | None, truncation: float | None, out: Path, root: Path) -> None:
    """Draw images from MODEL: models:/NAME/VERSION, models:/NAME@ALIAS, or a folder such as models/RUN."""
    if out.suffix not in (".npz", ".png"):
        raise InputError(f"--out {out}: must end in .npz or .png")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    require_root(root)
    from atelier.registry.sample import sample

    print(sample(model, n, seed, label, out, root, truncation))


@app.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Which version; the newest if left out.")
@alias_option("--to")
@reason_option
@click.option("--force", is_flag=True, help="Promote although a gate is not passed; needs --reason.")
@click.option("--dry-run", is_flag=True, help="Judge, and change nothing.")
@click.option("--to-registry", metavar="URI", help="Another MLflow, to copy the version to and promote it there.")
@stage
def promote(
    name: str,
    version: int | None,
    alias: str,
    reason: str,
    force: bool,
    dry_run: bool,
    to_registry: str | None,
    params: Params,
    root: Path,
) -> None:
    """Make a version of the registered model NAME its champion, if it passes the gates of params.yaml."""
    if force and not reason:
        raise InputError("--force: give a --reason TEXT, it is recorded")
    from atelier.registry.promote import promote

    promote(name, version, alias, params.promote, root, print, reason, force, dry_run, to_registry)


@app.command()
@click.argument("name")
@alias_option("--alias")
@reason_option
@root_option
def rollback(name: str, alias: str, reason: str, root: Path) -> None:
    """Restore the champion of NAME before the present one; as often as there were champions."""
    require_root(root)
    from atelier.registry.promote import rollback

    rollback(name, alias, root, print, reason)


@app.command()
@click.argument("name")
@alias_option("--alias")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@root_option
def history(name: str, alias: str, as_json: bool, root: Path) -> None:
    """Who was champion of NAME when, by whom and why; the newest change first."""
    require_root(root)
    from atelier.registry.promote import history_table, read

    found = read(name, alias, root)
    if as_json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(found) | {"champion": found.champion}))
    else:
        print(history_table(found, name, alias))


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print the parameter counts of each model's networks as JSON.")
def models(as_json: bool) -> None:
    """List the models with their sources, data and parameter counts.

    Counts are of trainable parameters at each model's default sizes, for the images it was made for.
    """
    from atelier.models import MODELS, count_parameters

    counts = {name: count_parameters(name) for name in MODELS}
    if as_json:
        import json

        print(json.dumps(counts))
        return
    ranges = {"symmetric": "[-1, 1]", "unit": "[0, 1]"}
    rows = [("name", "made for", "range", "labels", "parameters", "source")]
    for name, entry in MODELS.items():
        image = f"{entry.home.height}x{entry.home.width}x{entry.home.channels}"
        labels = f"{entry.labels} (off)" if entry.labels == "optional" and not entry.recipe.labels else entry.labels
        networks = ", ".join(f"{role} {count:,}" for role, count in counts[name].items())
        rows.append((name, image, ranges[entry.data_range], labels, networks, entry.source))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
@click.argument("uri")
@overrides_option
@root_option
def reproduce(uri: str, overrides: tuple[str, ...], root: Path) -> None:
    """Train the version at URI (models:/NAME/VERSION, models:/NAME@ALIAS) again elsewhere, and compare weights."""
    require_root(root)
    from atelier.registry.reproduce import reproduce

    reproduce(uri, overrides, root, say)


@app.group()
def runs() -> None:
    """Look after MLflow runs."""


@runs.command("close")
@click.option(
    "--older-than", "hours", type=click.FloatRange(min=0), help="Hours; also those of other machines that are older."
)
@root_option
def close(hours: float | None, root: Path) -> None:
    """End as KILLED the runs that killed trainings left RUNNING."""
    require_root(root)
    from atelier.runs import close_runs

    print(f"{close_runs(root, say, hours)} runs closed")


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
    from atelier.data.check import check

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


def say(message: str) -> None:
    """Tell the person, on standard error: standard output holds results only."""
    print(message, file=sys.stderr, flush=True)


def main() -> Any:
    """Entry point: every error is one line on standard error; exit code 2 for wrong input, 1 for a failure."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that wait for each other spin for some microseconds, then sleep: the default of some milliseconds is a
        # sixth faster on idle cores, and brings a training to a standstill on busy ones
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "atelier"
        say(f"atelier: {' '.join(error.format_message().split())} (see '{where} --help')")
        return 2
    except AtelierError as error:
        say(f"atelier: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("atelier: interrupted")
        return 130
    except OSError as error:
        # a file that is written beside its place is told by its own name
        name = re.sub(r"/\.([^/]+?)(\.\d+)?\.partial(\.\w+)?$", r"/\1\3", str(error.filename or "file system"))
        say(f"atelier: {name}: {error.strerror or error}")
        return 1
    except MemoryError as error:
        say(f"atelier: not enough memory: {error}")
        return 1

"""Commands that draw from registered models, promote them, and look back at how they came about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atelier.cli.options import check_alias, overrides_option, require_root, root_option, say, show, with_params
from atelier.errors import InputError

if TYPE_CHECKING:
    from atelier.config import Params

reason_option = click.option("--reason", default="", metavar="TEXT", help="Recorded in the history.")


def alias_option(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which alias of a registered model is meant."""
    return click.option(*flags, "alias", default="champion", show_default=True, callback=check_alias, help="The alias.")


@click.command()
@click.argument("model")
@click.option("--n", type=click.IntRange(min=1), default=100, show_default=True, help="How many images.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    show_default=True,
    help="The same seed, the same images.",
)
@click.option(
    "--from",
    "first",
    type=click.IntRange(min=0, max=10**9),
    default=0,
    show_default=True,
    help="The number of the first: --n 1 --from 17 is image 17 alone.",
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
def sample(
    model: str, n: int, seed: int, first: int, label: int | None, truncation: float | None, out: Path, root: Path
) -> None:
    """Draw images from MODEL: models:/NAME/VERSION, models:/NAME@ALIAS, or a folder such as models/RUN."""
    if out.suffix not in (".npz", ".png"):
        raise InputError(f"--out {out}: must end in .npz or .png")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    require_root(root)
    from atelier.registry.sample import sample

    print(sample(model, n, seed, label, out, root, truncation, first))


@click.command()
@click.argument("file", type=Path)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@root_option
def whence(file: Path, as_json: bool, root: Path) -> None:
    """Which model drew the picture FILE (PNG, GIF, NPZ), and which registered versions are that model.

    Exit code 1 if it does not say so.
    """
    require_root(root)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    from atelier.registry.whence import whence

    found = whence(file, root)
    for line in [found.to_json()] if as_json else found.lines():
        show(line)


@click.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Which version; the newest if left out.")
@click.option("--best", is_flag=True, help="The version that is best by the first metric of promote.better.")
@alias_option("--alias", "--to")
@reason_option
@click.option("--force", is_flag=True, help="Promote although a gate is not passed; needs --reason.")
@click.option("--dry-run", is_flag=True, help="Judge, and change nothing.")
@click.option("--to-registry", metavar="URI", help="Another MLflow, to copy the version to and promote it there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was decided, gate by gate, as JSON.")
@with_params
def promote(
    name: str,
    version: int | None,
    best: bool,
    alias: str,
    reason: str,
    force: bool,
    dry_run: bool,
    to_registry: str | None,
    as_json: bool,
    params: Params,
    root: Path,
) -> None:
    """Make a version of the registered model NAME its champion, if it passes the gates of params.yaml."""
    if force and not reason:
        raise InputError("--force: give a --reason TEXT, it is recorded")
    if best and version is not None:
        raise InputError("--best: finds the version itself; leave out --version")
    from atelier.registry.promote import GatesNotPassed, promote

    tell = say if as_json else show
    try:
        decision = promote(name, version, alias, params.promote, root, tell, reason, force, dry_run, to_registry, best)
    except GatesNotPassed as refusal:
        if as_json:
            show(refusal.decision.to_json())
        raise
    if as_json:
        show(decision.to_json())


@click.command()
@click.argument("name")
@alias_option("--alias")
@reason_option
@root_option
def rollback(name: str, alias: str, reason: str, root: Path) -> None:
    """Restore the champion of NAME before the present one; as often as there were champions."""
    require_root(root)
    from atelier.registry.promote import rollback

    rollback(name, alias, root, show, reason)


@click.command()
@click.argument("name")
@alias_option("--alias")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@root_option
def history(name: str, alias: str, as_json: bool, root: Path) -> None:
    """Who was champion of NAME when, by whom and why; the newest change first."""
    require_root(root)
    from atelier.registry.promote import read

    found = read(name, alias, root)
    for line in [found.to_json()] if as_json else found.lines(name, alias):
        show(line)


@click.command()
@click.argument("uri")
@overrides_option
@root_option
def reproduce(uri: str, overrides: tuple[str, ...], root: Path) -> None:
    """Train the version at URI (models:/NAME/VERSION, models:/NAME@ALIAS) again elsewhere, and compare weights."""
    require_root(root)
    from atelier.registry.reproduce import reproduce

    reproduce(uri, overrides, root, say)

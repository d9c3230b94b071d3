"""Commands that draw from registered models, promote them, and look back at how they came about."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atelier.cli.options import check_alias, overrides_option, require_root, root_option, say, show, with_params
from atelier.errors import InputError

if TYPE_CHECKING:
    from atelier.config import Params

reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")


def alias_option(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which alias of a registered model is meant."""
    return click.option(
        *flags, "alias", default="champion", show_default=True, callback=check_alias, help="The alias that is meant."
    )


@click.command()
@click.argument("model")
@click.option("--n", type=click.IntRange(min=1), default=100, show_default=True, help="How many images.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    show_default=True,
    help="Of the random numbers: the same seed draws the same images.",
)
@click.option(
    "--from",
    "first",
    type=click.IntRange(min=0, max=10**9),
    default=0,
    show_default=True,
    help="Number of the first image: --n 1 --from 17 draws image 17 alone.",
)
@click.option(
    "--label", type=click.IntRange(min=0), help="Number of the class to draw; without it, each class in turn."
)
@click.option(
    "--truncation", type=float, help="Largest size of the noise: the smaller, the less variety and the fewer failures."
)
@click.option(
    "--out",
    type=Path,
    required=True,
    help="File to write: NAME.npz, arrays of images (n, h, w, c) and labels, or NAME.png, a grid.",
)
@click.option(
    "--sign",
    type=Path,
    metavar="CERTIFICATES",
    help="Sign the PNG by C2PA: PEM of your certificate and its issuers'; ATELIER_SIGNING_KEY names the key's file.",
)
@root_option
def sample(
    model: str,
    n: int,
    seed: int,
    first: int,
    label: int | None,
    truncation: float | None,
    out: Path,
    sign: Path | None,
    root: Path,
) -> None:
    """Draw images from MODEL: models:/NAME/VERSION, models:/NAME@ALIAS, or a folder such as models/RUN."""
    if out.suffix not in (".npz", ".png"):
        raise InputError(f"--out {out}: must end in .npz or .png")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    require_root(root)
    from atelier.registry.sample import sample

    signature = None
    if sign is not None:
        if out.suffix != ".png":
            raise InputError(f"--out {out}: --sign signs PNG; end it in .png")
        from atelier.sharing.signature import Signature

        signature = Signature(sign)
    if signature is None:
        print(sample(model, n, seed, label, out, root, truncation, first))
        return
    with tempfile.TemporaryDirectory(prefix="atelier-sign-") as folder:
        signature.sign(sample(model, n, seed, label, Path(folder) / out.name, root, truncation, first), out)
    print(out)


@click.command()
@click.argument("model")
@click.option("--out", type=Path, help="Folder to write; without it, one in the reports, whose page leads to it.")
@click.option(
    "--endpoint",
    metavar="URL",
    help="Where 'mlflow models serve' serves the model; a page that the model is too large for asks it for images.",
)
@root_option
def playground(model: str, out: Path | None, endpoint: str | None, root: Path) -> None:
    """Write a page that draws from MODEL in any browser, without a server or a network.

    MODEL is models:/NAME/VERSION, models:/NAME@ALIAS, or a folder such as models/RUN.
    """
    require_root(root)
    from atelier.sharing.playground import playground

    print(playground(model, out, root, endpoint))


@click.command()
@click.argument("model")
@click.option(
    "--to",
    required=True,
    metavar="PLACE",
    help="A folder, or hf://OWNER/NAME on Hugging Face; the token is taken from HF_TOKEN.",
)
@click.option(
    "--playground", "with_playground", is_flag=True, help="Add a page that draws from the model in a browser."
)
@click.option("--private", is_flag=True, help="Make a repository that only its owners see.")
@with_params
def publish(model: str, to: str, with_playground: bool, private: bool, params: Params, root: Path) -> None:
    """Publish a model as hubs lay it out, to a folder or to Hugging Face.

    MODEL is a run, models:/NAME/VERSION or models:/NAME@ALIAS. It gets weights, ONNX, samples, and a card whose figures
    the hub reads.
    """
    from atelier.sharing.publish import publish

    print(publish(model, to, with_playground, private, params, root, say))


@click.command()
@click.argument("file", type=Path)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@root_option
def whence(file: Path, as_json: bool, root: Path) -> None:
    """Say which model drew the picture FILE (PNG, GIF, NPZ), and which registered versions are that model.

    The exit code is 1 if the file does not say it.
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
@click.option("--version", type=click.IntRange(min=1), help="Number of the version; without it, the newest.")
@click.option("--best", is_flag=True, help="Take the version that is best by the first metric of promote.better.")
@alias_option("--alias", "--to")
@reason_option
@click.option("--force", is_flag=True, help="Promote although a gate is not passed; needs --reason.")
@click.option("--dry-run", is_flag=True, help="Judge, and change nothing.")
@click.option("--to-registry", metavar="URI", help="Copy the version to another MLflow, and promote it there.")
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
    """Make the champion before the present one of NAME the champion again; repeatable."""
    require_root(root)
    from atelier.registry.promote import rollback

    rollback(name, alias, root, show, reason)


@click.command()
@click.argument("name")
@alias_option("--alias")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@root_option
def history(name: str, alias: str, as_json: bool, root: Path) -> None:
    """Show which versions of NAME were champion when, by whom and why, the newest change first."""
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
    """Train a registered version again in a folder of its own, and compare the weights bit for bit.

    URI is models:/NAME/VERSION or models:/NAME@ALIAS.
    """
    require_root(root)
    from atelier.registry.reproduce import reproduce

    reproduce(uri, overrides, root, say)

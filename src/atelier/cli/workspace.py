"""Commands that make a workspace of one's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atelier.cli.options import load, require_root, root_option, say, show, with_params
from atelier.errors import AtelierError

if TYPE_CHECKING:
    from atelier.config import Params


def with_workspace(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the folder of a new workspace, and what `atelier.init.init` asks beside it."""
    for option in (
        click.option("--git/--no-git", "is_git", default=True, show_default=True, help="Make it a git repository."),
        click.option("--model", metavar="NAME", help="One of 'atelier models'; without it, a GAN and a VAE."),
        click.option(
            "--dataset",
            default="mnist",
            show_default=True,
            metavar="NAME|FOLDER",
            help="mnist, fashion-mnist, pokemon, pokemon-types, or a folder or archive of your pictures.",
        ),
        click.argument("folder", type=Path),
    ):
        function = option(function)
    return function


@click.command()
@with_workspace
def init(folder: Path, dataset: str, model: str | None, is_git: bool) -> None:
    """Write a workspace to FOLDER: parameters, pipeline, image, CI and cluster, for you to commit.

    A file that is there already is never changed.
    """
    from atelier.init import init

    init(folder, dataset, model, is_git)
    print(folder)
    say(f"next: cd {shlex.quote(str(folder))} && dvc repro")


@click.command()
@with_workspace
def demo(folder: Path, dataset: str, model: str | None, is_git: bool) -> None:
    """Write a workspace to FOLDER and run its pipeline: 'atelier init', then 'dvc repro'."""
    from atelier.init import init

    init(folder, dataset, model, is_git)
    from atelier.processes import with_own_commands

    command = [sys.executable, "-m", "dvc", "repro"]
    code = subprocess.run(command, cwd=folder, env=with_own_commands(), check=False).returncode
    if code:
        raise AtelierError(f"{folder}: dvc repro ended with {code}; run it again there")
    print(folder / "reports" / "index.html")


@click.command()
@click.argument("folder", type=Path, default=".")
@click.option("--apply", "is_applied", is_flag=True, help="Write it; without this, only show what would change.")
def upgrade(folder: Path, is_applied: bool) -> None:
    """Show what this version would change in the files that 'atelier init' wrote to FOLDER.

    What you changed there stays; a file of which the same lines have changed is named and left as it is.
    """
    from atelier.init import upgrade

    require_root(folder)
    changes = upgrade(folder, really=is_applied)
    for change in changes:
        if change.after is not None:
            print(change.diff, end="")
    if kept := [change.name for change in changes if change.after is None]:
        raise AtelierError(
            f"{', '.join(kept)}: changed or removed here and by this version; see what 'atelier init' writes to a new "
            "folder, and change them by hand"
        )
    done = "is as this version writes it" if is_applied or not changes else "would change; --apply writes it"
    say(f"{folder}: {done}")


@click.command()
@root_option
def merge(root: Path) -> None:
    """Resolve what 'git merge' left unmerged in params.yaml and dvc.lock, by what they mean, and stage it.

    What both branches recorded of a stage, each in its way, 'dvc repro' makes again.
    """
    from atelier.merge import is_rebase, merge

    require_root(root)
    done = merge(root)
    for name in done.files:
        show(str(root / name))
    if done.again:
        say(f"to be made again: {', '.join(done.again)}")
    if done.left:
        say(f"git has conflicts left in {', '.join(done.left)}; resolve them too")
    end = "git add dvc.lock; git rebase --continue" if is_rebase(root) else "git commit --all"
    say(f"next: dvc checkout --allow-missing; dvc repro; {end}")


@click.command()
def docs() -> None:
    """Print the folder of the manual."""
    import atelier

    print(Path(atelier.__file__).parent / "docs")


@click.command()
@click.argument("targets", metavar="[STAGE]...", nargs=-1)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="How many stages run at a time."
)
@root_option
def repro(targets: tuple[str, ...], jobs: int, root: Path) -> None:
    """Run the stages that are out of date, as 'dvc repro' does, JOBS of them at a time.

    The processor's cores are shared out between them, and the cards of CUDA_VISIBLE_DEVICES go round. What is made and
    recorded is what 'dvc repro' makes with as many threads (OMP_NUM_THREADS) for each stage.
    """
    from atelier.config import Notify
    from atelier.notify import notified
    from atelier.repro import repro

    require_root(root)
    cards = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    has_params = (root / "params.yaml").is_file()  # DVC runs stages without, too
    settings = load(root, Path("params.yaml"), ()).notify if has_params else Notify()
    with notified(settings, " ".join(["repro", *targets]), say, tells_end=True):
        ran = repro(targets, jobs, cards, root, say)
    say(f"{len(ran)} stages ran" if ran else "everything is up to date")


@click.command()
@click.option(
    "--versions", type=click.IntRange(min=1), metavar="N", help="Also model versions beyond the N newest of each model."
)
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also MLflow runs without a version that ended more than DAYS days ago.",
)
@click.option(
    "--everyone",
    "is_everyones",
    is_flag=True,
    help="Also what other workspaces made: on a server, and in a DVC cache that lies elsewhere.",
)
@click.option("--yes", is_flag=True, help="Remove it; without this, only show what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@with_params
def gc(
    versions: int | None, days: float | None, is_everyones: bool, yes: bool, as_json: bool, params: Params, root: Path
) -> None:
    """Show what nobody needs any more, and how large it is: leftovers here, in MLflow and in DVC's cache.

    A champion stays, and so do the versions that were one, those that others were trained from, and those of the models
    here.
    """
    from atelier.gc import unused
    from atelier.progress import watch
    from atelier.registry.unused import Rule

    found = unused(params, root, Rule(versions, days, is_everyones))
    if as_json:
        import json

        show(json.dumps([{"kind": one.kind, "name": one.name, "bytes": one.bytes} for one in found]))
    else:
        for kind in dict.fromkeys(one.kind for one in found):
            of_kind = [one for one in found if one.kind == kind]
            show(f"{kind}: {sum(one.bytes for one in of_kind) / 1e6:,.1f} MB")
            for one in of_kind:
                show(f"  {one.name}: {one.bytes / 1e6:,.1f} MB")
    for one in watch(found, len(found), "gc", "thing") if yes else ():
        one.remove()
    size = f"{sum(one.bytes for one in found) / 1e6:,.1f} MB"
    end = f"{size} removed" if yes else f"{size}; nothing was removed, --yes removes it"
    say(end if found else "nothing to remove")

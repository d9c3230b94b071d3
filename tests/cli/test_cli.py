from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from atelier.cli import app

PROJECT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "mlflow", "dvc", "numpy", "pandas", "matplotlib", "kfp", "boto3")
STAGES = ("plan", "ingest", "prepare", "reference", "train", "evaluate", "register", "compare")
REGISTRY = ("promote", "rollback", "history", "reproduce", "runs")

# the command line in a process of its own, which then says which heavy packages it imported
PROBE = f"""
import sys
from atelier.cli import main
sys.argv = ["atelier", *sys.argv[1:]]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
print("imported:", [name for name in {HEAVY!r} if name in sys.modules])
sys.exit(code)
"""


def atelier(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=PROJECT, check=False
    )


COMMANDS = (*STAGES, "sample", "whence", "models", "init", "demo", "docs", *REGISTRY)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    result = atelier(*arguments)
    assert result.returncode == 0
    assert "Usage: atelier" in result.stdout
    assert "imported: []" in result.stdout


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and those below it, each with where it is called."""
    yield command, context
    for name, one in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(one, click.Context(one, parent=context, info_name=name, terminal_width=80))


def test_help_is_whole_at_80_columns_and_says_what_each_option_is_for() -> None:
    found = list(commands(app, click.Context(app, info_name="atelier", terminal_width=80)))
    assert len(found) > 40
    for command, context in found:
        lines = command.get_help(context).splitlines()
        assert not [line for line in lines[1:] if line.endswith("...") or len(line) > 80], context.command_path
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert all(one.help and one.help.endswith((".", "]")) for one in options), context.command_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trin"], "No such command 'trin'. Did you mean 'train'?"),
        (["train"], "Missing argument 'RUN'"),
        (["train", "mnist-cgn"], "runs has no 'mnist-cgn'; did you mean 'mnist-cgan'?"),
        (["ingest", "mnst"], "unknown data set 'mnst'; did you mean 'mnist'?"),
        (["train", "mnist-cgan", "--sets", "a=1"], "No such option '--sets'"),
        (["train", "mnist-cgan", "--set", "a"], "--set a: write section.key=value"),
        (["train", "mnist-cgan", "--root", "nowhere"], "--root nowhere: no such folder"),
        (["whence", "nowhere.png"], "nowhere.png: no such file"),
        (["compare", "--params", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["promote", "mnist-cgan", "--force"], "--force: give a --reason TEXT"),
        (["promote", "mnist-cgan", "--to", "latest"], "'latest': letters, digits"),
        (["promote", "mnist-cgan", "--alias", "latest"], "'latest': letters, digits"),
        (["promote", "mnist-cgan", "--set", "promote.better=1"], "promote.better: expected a list, found 1"),
        (["promote", "mnist-cgan", "--set", "promote.at_most.fid=low"], "promote.at_most.fid: expected a number"),
        (["sample", "models/x", "--out", "a.jpg"], "--out a.jpg: must end in .npz or .png"),
        (["sample", "models/x", "--out", "a.png", "--n", "0"], "0 is not in the range x>=1"),
    ],
)
def test_usage_errors_are_one_line_exit_2_and_import_nothing_heavy(arguments: list[str], message: str) -> None:
    result = atelier(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "imported: []" in result.stdout


def test_what_is_not_ours_cannot_move_the_terminal() -> None:
    result = atelier("evaluate", "\x1b[2K\x1b]0;title\x07\u202egan\natelier: all is well")
    assert result.returncode == 2
    assert r"runs has no '\x1b[2K\x1b]0;title\x07\u202egan\natelier: all is well'" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip("\n").isprintable()


def test_every_stage_of_dvc_yaml_is_a_command_of_the_same_name() -> None:
    from ruamel.yaml import YAML

    from atelier.cli import app
    from atelier.config import Params

    pipeline = YAML(typ="safe", pure=True).load((PROJECT / "dvc.yaml").read_text())
    assert tuple(pipeline["stages"]) == STAGES
    sections = {field.alias or name for name, field in Params.model_fields.items()}
    for name, stage in pipeline["stages"].items():
        definition = stage.get("do", stage)
        assert definition["cmd"].split()[:2] == ["atelier", name]
        assert name in app.commands
        assert name in sections or name == "plan"


def test_a_closed_standard_error_swallows_what_is_said_and_gives_its_number_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: []")
    code = f"""
import os, sys
from atelier.cli import main
sys.argv = ["atelier", "ingest", "mnist", "--root", {str(tmp_path)!r}]
print(main(), open(os.devnull).fileno() > 2)
"""
    closed = 'exec "$0" -c "$1" 2>&-'
    result = subprocess.run(["sh", "-c", closed, sys.executable, code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "2 True\n")


def test_a_user_without_a_name_and_a_home_is_told_what_is_wrong_and_no_more(tmp_path: Path) -> None:
    code = f"""
import os, pwd, sys

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {{uid}}")

pwd.getpwuid = unknown
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
from atelier.cli import main
sys.argv = ["atelier", "runs", "close", "--root", {str(tmp_path)!r}]
sys.exit(main())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "0 runs closed\n"), result.stderr


def test_what_the_file_system_refuses_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: [mnist]\nruns: {}\n")
    (tmp_path / "plan.json").mkdir()
    command = [sys.executable, "-m", "atelier", "plan", "--root", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"atelier: {tmp_path}/plan.json: Is a directory; move that folder away, and run it again\n"
    assert (result.returncode, result.stderr) == (1, told)

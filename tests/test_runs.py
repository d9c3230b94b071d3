"""What a workspace holds of its runs, and of those that params.yaml has no more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.cli import main
from atelier.config import load_params
from atelier.errors import AtelierError, InputError
from atelier.plan import plan
from atelier.runs import delete, run_states

HOLDER = """
import sys
from pathlib import Path
from atelier.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def call(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["atelier", "runs", *arguments, "--root", str(root)])
    capsys.readouterr()
    assert not main()
    return capsys.readouterr()


def take_out(root: Path, run: str) -> None:
    lines = (root / "params.yaml").read_text().splitlines(keepends=True)
    (root / "params.yaml").write_text("".join(line for line in lines if not line.startswith(f"  {run}:")))


def test_each_run_is_listed_with_what_there_is_of_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained / "params.yaml").read_text()
    (trained / "params.yaml").write_text(text.replace("runs:\n", "runs:\n  new: {dataset: mnist, model: cvae}\n"))
    take_out(trained, "mnist-cvae")
    found = json.loads(call(trained, monkeypatch, capsys, "list", "--json").out)
    assert [(one["name"], one["state"], one["in_params"], one["kimg"]) for one in found] == [
        ("new", "planned", True, 240),
        ("mnist-cgan", "judged", True, 2),
        ("mnist-cvae", "judged", False, 2),
    ]
    assert found[1]["metrics"]["fd_classifier"] > 0
    lines = call(trained, monkeypatch, capsys, "list").out.splitlines()
    assert "judged, not in params.yaml" in lines[3]
    assert "label_agreement" in call(trained, monkeypatch, capsys, "show", "mnist-cvae").out


def test_a_report_of_other_weights_and_damage_are_told(trained: Path) -> None:
    path = trained / "reports" / "mnist-cgan" / "report.json"
    path.write_text(re.sub('"weights_sha256": "[0-9a-f]+"', f'"weights_sha256": "{64 * "0"}"', path.read_text()))
    (trained / "models" / "mnist-cvae" / "config.json").write_text("{}")
    states = {one.name: one.state for one in run_states(load_params(trained / "params.yaml"), trained)}
    assert states == {"mnist-cgan": "trained", "mnist-cvae": "damaged"}


def test_what_is_left_of_a_run_is_removed_when_it_is_said_so(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"mnist-cvae: params\.yaml has it"):
        delete("mnist-cvae", load_params(trained / "params.yaml"), trained, really=True)
    take_out(trained, "mnist-cvae")
    params = load_params(trained / "params.yaml")
    with pytest.raises(InputError, match=r"mnist-cva: no such run in params\.yaml or in"):
        delete("mnist-cva", params, trained, really=True)

    said = call(trained, monkeypatch, capsys, "delete", "mnist-cvae")
    held = [Path(line) for line in said.out.splitlines()]
    assert trained / "models" / "mnist-cvae" in held
    assert all(path.exists() for path in held), "only said"
    call(trained, monkeypatch, capsys, "delete", "mnist-cvae", "--yes")
    assert not list(trained.glob("*/*mnist-cvae*"))
    assert [one.name for one in run_states(params, trained)] == ["mnist-cgan"]


def test_nothing_goes_while_another_process_writes_it(trained: Path) -> None:
    take_out(trained, "mnist-cvae")
    params = load_params(trained / "params.yaml")
    command = [sys.executable, "-c", HOLDER, str(trained / "models" / "mnist-cvae")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(AtelierError, match="is writing it"):
            delete("mnist-cvae", params, trained, really=True)
        process.communicate(b"\n")
    assert (trained / "models" / "mnist-cvae" / "config.json").is_file()
    assert (trained / "reports" / "mnist-cvae" / "report.json").is_file()


def test_what_was_registered_of_a_run_that_is_no_more_is_none_of_compares_dependencies(trained: Path) -> None:
    for name in ("mnist-cgan", "mnist-cvae"):
        (trained / "registry").mkdir(exist_ok=True)
        (trained / "registry" / f"{name}.json").write_text("{}")
    take_out(trained, "mnist-cvae")
    plan(load_params(trained / "params.yaml"), trained)
    assert [path.name for path in (trained / "registry").iterdir()] == ["mnist-cgan.json"]

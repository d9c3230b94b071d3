"""How a stage is run in a pod: again where that may help, ended where it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atelier.components import workspace
from atelier.components.workspace import TRIES, clear_workspaces, run_command, run_node
from atelier.errors import LOST_RANK
from atelier.files import read_json

pytestmark = pytest.mark.processes


def stage(tmp_path: Path, *ends: str) -> list[str]:
    """A command that says and does the next of `ends` each time it is started, and then succeeds."""
    lines = "\n    ".join(f"{number}: lambda: {end}," for number, end in enumerate(ends))
    (tmp_path / "stage.py").write_text(
        f"""
import os, signal, sys
from pathlib import Path
def say(line, code):
    print(line, file=sys.stderr)
    return code
count = Path({str(tmp_path / "count")!r})
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
sys.exit({{
    {lines}
}}.get(number, lambda: 0)())
"""
    )
    return [sys.executable, str(tmp_path / "stage.py")]


def tried(tmp_path: Path) -> int:
    return int((tmp_path / "count").read_text())


@pytest.fixture(autouse=True)
def _three_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRIES, "3")
    monkeypatch.setattr(workspace, "RETRY_SECONDS", 0.01)


@pytest.mark.parametrize("end", ["1", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_failure_and_a_kill_are_tried_again(tmp_path: Path, end: str, capfd: pytest.CaptureFixture[str]) -> None:
    run_command(stage(tmp_path, end, end))
    assert tried(tmp_path) == 3
    assert "try 3 of 3" in capfd.readouterr().err


def test_after_the_last_try_the_exit_code_is_the_stages(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(stage(tmp_path, "1", "1", "os.kill(os.getpid(), signal.SIGKILL)", "1"))
    assert ended.value.code == 137
    assert tried(tmp_path) == 3


def test_wrong_input_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(stage(tmp_path, "say('atelier: params.yaml: wrong', 2)"))
    assert ended.value.code == 2
    assert tried(tmp_path) == 1
    assert capfd.readouterr().err == "atelier: params.yaml: wrong\n"


def test_wrong_input_behind_torchrun_which_makes_1_of_it_is_not_tried_again(tmp_path: Path) -> None:
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with pytest.raises(SystemExit) as ended:
        run_command([*ranks, *stage(tmp_path, "2", "2", "2")[1:]])
    assert ended.value.code == 2
    assert tried(tmp_path) <= 2


def test_sigterm_reaches_the_stage_and_is_no_reason_to_try_again(tmp_path: Path) -> None:
    program = f"from atelier.components.workspace import run_command; run_command({stage(tmp_path, 'signal.pause()')})"
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {TRIES: "3"})
    while not (tmp_path / "count").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert tried(tmp_path) == 1


@pytest.mark.parametrize(("says", "left"), [("loss is not finite", True), (LOST_RANK, False)])
def test_a_node_leaves_why_it_failed_unless_another_did(
    tmp_path: Path, says: str, left: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = stage(tmp_path, f"say('atelier: {says}', 1) and say('exitcode  : 2 (pid: 7)', 1)")
    child = workspace._Child.run
    monkeypatch.setattr(workspace._Child, "run", lambda self, _: child(self, command))
    (tmp_path / "checkpoints" / "r").mkdir(parents=True)
    (tmp_path / "checkpoints" / "r" / "000000000200.checkpoint").touch()
    with pytest.raises(SystemExit) as ended:
        run_node("r", tmp_path)
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1] == f"atelier: {says}"  # after torchrun's own report
    reports = [read_json(path) for path in (tmp_path / "failures" / "r").glob("*")]
    assert [(one["code"], one["line"], one["newest"]) for one in reports] == (
        [(2, says, "000000000200.checkpoint")] if left else []
    )


def test_workspaces_go_when_empty_and_when_old(tmp_path: Path) -> None:
    for name in ("this", "failed", "old"):
        (tmp_path / name).mkdir()
    for name in ("failed", "old"):
        (tmp_path / name / "train-a").mkdir()
        (tmp_path / name / "train-a" / "checkpoint").touch()
    old = time.time() - (workspace.KEPT_DAYS + 1) * 86400
    for path in (tmp_path / "old" / "train-a" / "checkpoint", tmp_path / "old" / "train-a", tmp_path / "old"):
        os.utime(path, (old, old))
    clear_workspaces(tmp_path, "this")
    assert [path.name for path in tmp_path.iterdir()] == ["failed"]
    clear_workspaces(tmp_path, "failed")
    assert (tmp_path / "failed" / "train-a" / "checkpoint").exists()  # for a retry

"""`atelier repro`: DVC's stages side by side, with a lock file as `dvc repro` writes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from atelier.cli import app
from atelier.errors import AtelierError, InputError
from atelier.repro import repro

pytestmark = pytest.mark.processes
HANG_SECONDS = 180
# `slow` ends after `quick`, and neither ends unless both run at the same time
PIPELINE = """
stages:
  slow: {cmd: "touch slow-begun; until test -e quick; do sleep 0.05; done; echo a > slow", deps: [in], outs: [slow]}
  quick: {cmd: "until test -e slow-begun; do sleep 0.05; done; echo b > quick", deps: [in], outs: [quick]}
  both: {cmd: "cat slow quick > both", deps: [slow, quick], outs: [both]}
"""


def workspace(root: Path, pipeline: str) -> Path:
    root.mkdir()
    (root / "dvc.yaml").write_text(pipeline)
    (root / "in").write_text("in\n")
    dvc(root, "init", "--no-scm", "--quiet")
    return root


def dvc(root: Path, *arguments: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "true"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, env=environment, check=True)


def test_side_by_side_they_leave_the_lock_of_one_after_another(tmp_path: Path) -> None:
    root = workspace(tmp_path / "here", PIPELINE)
    alone = Path(shutil.copytree(root, tmp_path / "alone"))
    (alone / "slow-begun").touch()
    (alone / "quick").write_text("b\n")
    assert repro([], 2, [], root, print) == ["quick", "slow", "both"]
    dvc(alone, "repro", "--quiet")
    assert (root / "dvc.lock").read_bytes() == (alone / "dvc.lock").read_bytes()
    assert (root / "both").read_text() == "a\nb\n"
    assert repro([], 2, [], root, print) == []
    # what was there before keeps its place, and its output comes from DVC's cache
    (root / "quick").unlink()
    assert repro(["quick"], 2, [], root, print) == ["quick"]
    assert (root / "quick").read_text() == "b\n"
    assert (root / "dvc.lock").read_bytes() == (alone / "dvc.lock").read_bytes()


def test_a_failure_lets_the_others_end_and_starts_none(tmp_path: Path) -> None:
    root = workspace(
        tmp_path / "here",
        """
stages:
  bad: {cmd: "until test -e good-begun; do sleep 0.05; done; echo no data >&2; exit 2", outs: [bad]}
  good: {cmd: "touch good-begun; sleep 0.5; echo b > good", outs: [good]}
  after: {cmd: "cat good > after", deps: [good], outs: [after]}
""",
    )
    said = list[str]()
    with pytest.raises(AtelierError, match=r"^bad failed: no data; not run for that: after$"):
        repro([], 2, [], root, said.append)
    assert "bad: no data" in said
    assert any("bad: failed to run: " in line and line.endswith("exited with 2") for line in said)
    assert (root / "good").read_text() == "b\n"
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("echo no data >&2; exit 2", "touch bad"))
    assert set(repro([], 2, [], root, print)) == {"bad", "after"}  # whichever ends first


def test_cores_and_cards_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    stage = """
  {0}:
    cmd: "touch {0}; until test -e {1}; do sleep 0.05; done; echo $OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES > {0}.out"
    outs: [{0}.out]
"""
    root = workspace(tmp_path / "here", f"stages:{stage.format('a', 'b')}{stage.format('b', 'a')}")
    repro([], 2, ["4", "7"], root, print)
    assert sorted((root / f"{name}.out").read_text() for name in "ab") == ["3 4\n", "3 7\n"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (root / "a.out").unlink()
    (root / "a").unlink()
    (root / ".dvc" / "cache").rename(tmp_path / "cache")
    repro(["a"], 1, [], root, print)
    assert (root / "a.out").read_text().split()[0] == "1"


def test_sigterm_reaches_the_commands_and_leaves_no_process(tmp_path: Path) -> None:
    root = workspace(
        tmp_path / "here",
        "stages: {a: {cmd: \"trap 'touch told; exit 143' TERM; touch begun; sleep 60 & wait\", outs: [out]}}",
    )
    command = [sys.executable, "-m", "atelier", "repro", "--root", str(root)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANG_SECONDS
    while not (root / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "atelier: terminated; start it again and it goes on"
    assert (root / "told").exists()
    assert psutil.wait_procs(started, timeout=HANG_SECONDS)[1] == []


def test_after_a_kill_stages_that_are_still_ending_are_waited_for(tmp_path: Path) -> None:
    ending = "for i in $(seq 300); do test -e heard && exit 143; sleep 0.1; done"
    cmd = f"if test -e begun; then touch out; exit; fi; trap '{ending}' TERM; touch begun; sleep 60 & wait"
    root = workspace(tmp_path / "here", f'stages: {{a: {{cmd: "{cmd}", outs: [out]}}}}')
    process = subprocess.Popen([sys.executable, "-m", "atelier", "repro", "--root", str(root)])
    deadline = time.monotonic() + HANG_SECONDS
    while not (root / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()

    def say(line: str) -> None:
        if line == "a: waiting for another command that works on the same files":
            (root / "heard").touch()

    assert repro([], 1, [], root, say) == ["a"]
    assert (root / "heard").exists()
    assert (root / "out").exists()


def test_what_is_no_workspace_and_no_stage_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dvc\.yaml: missing; give --root of a workspace"):
        repro([], 1, [], tmp_path, print)
    root = workspace(tmp_path / "here", PIPELINE)
    with pytest.raises(InputError, match=r"'missing'"):
        repro(["missing"], 1, [], root, print)
    (root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(AtelierError, match=r"^DVC in [^\n]*$"):
        repro([], 1, [], root, print)
    refused = CliRunner().invoke(app, ["repro", "--jobs", "0", "--root", str(root)])
    assert refused.exit_code == 2

"""Processes that end with their parent, say in one line what failed, and are not led to another checkout."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atelier.errors import AtelierError, shown
from atelier.processes import CommandMissing, clean_environment, processors, retry, run

PYTHON = sys.executable


def test_what_a_command_prints_is_returned_and_what_it_says_is_passed_on() -> None:
    said: list[str] = []
    code = "import sys; print('out'); print('one\\ntwo', file=sys.stderr)"
    assert run([PYTHON, "-c", code], what="a test", say=said.append) == "out\n"
    assert said == ["one", "two"]


def test_more_output_than_a_pipe_holds_is_returned_whole() -> None:
    code = "import sys; sys.stdout.write('x' * 1_000_000); sys.stderr.write('y\\n' * 100_000)"
    assert len(run([PYTHON, "-c", code], what="a test")) == 1_000_000


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('first\\nlast\\n\\n', file=sys.stderr); sys.exit(3)", "a test: last"),
        ("import sys; sys.exit(3)", f"a test: {PYTHON} ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", f"a test: {PYTHON} was ended by SIGKILL"),
        ("import sys; sys.exit('\\x1b[31mred')", "a test: \\x1b[31mred"),
    ],
)
def test_a_failure_is_one_line(code: str, message: str) -> None:
    with pytest.raises(AtelierError) as caught:
        run([PYTHON, "-c", code], what="a test")
    assert str(caught.value) == message


def test_a_program_that_is_absent_is_not_one_that_fails(tmp_path: Path) -> None:
    with pytest.raises(CommandMissing, match="no-such-program is not on this machine"):
        run(["no-such-program"], what="a test")
    with pytest.raises(FileNotFoundError) as caught:
        run([PYTHON, "-c", ""], what="a test", cwd=tmp_path / "nowhere")
    assert caught.value.filename == tmp_path / "nowhere"


@pytest.mark.processes
@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_git_acts_on_the_checkout_it_is_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        run(["git", "init", "-q"], what="git", cwd=tmp_path / name)
        (tmp_path / name / name).touch()
        run(["git", "add", "."], what="git", cwd=tmp_path / name)
    theirs = tmp_path / "theirs"
    values = {"GIT_DIR": theirs / ".git", "GIT_INDEX_FILE": theirs / ".git" / "index", "GIT_WORK_TREE": theirs}
    monkeypatch.setenv(variable, str(values[variable]))
    assert run(["git", "ls-files"], what="git", cwd=tmp_path / "ours") == "ours\n"
    assert run(["git", "rev-parse", "--show-toplevel"], what="git", cwd=tmp_path / "ours").strip() == str(
        (tmp_path / "ours").resolve()
    )


def test_ranks_and_runs_are_not_handed_down_and_identity_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "MLFLOW_RUN_ID", "DVC_ROOT", "GIT_TRACE2", "GIT_AUTHOR_NAME"):
        monkeypatch.setenv(name, "1")
    kept = clean_environment().keys() & {name for name in os.environ if os.environ[name] == "1"}
    assert {"RANK", "TORCHELASTIC_RUN_ID", "MLFLOW_RUN_ID", "DVC_ROOT", "GIT_TRACE2"}.isdisjoint(kept)
    assert "GIT_AUTHOR_NAME" in kept


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    parent = f"from atelier.processes import run; run({[PYTHON, '-c', child]!r}, what='a test')"
    process = subprocess.Popen([PYTHON, "-c", parent])
    deadline = time.monotonic() + 180
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    watched = os.pidfd_open(pid)
    process.kill()
    process.wait()
    ended, _, _ = select.select([watched], [], [], 60)
    if not ended:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
    os.close(watched)
    assert ended, "the child outlived its parent"


class Passing(Exception):
    pass


def test_what_passes_is_tried_again_and_what_does_not_is_raised_at_once() -> None:
    errors: list[Exception] = [Passing("1"), Passing("2")]
    calls = 0

    def action() -> int:
        nonlocal calls
        calls += 1
        if errors:
            raise errors.pop(0)
        return calls

    def again(error: Exception) -> bool:
        return isinstance(error, Passing)

    assert retry(action, again, (0, 0)) == 3
    errors, calls = [Passing("1"), Passing("2"), Passing("3")], 0
    with pytest.raises(Passing, match="3"):
        retry(action, again, (0, 0))
    errors, calls = [ValueError("lasting"), Passing("2")], 0
    with pytest.raises(ValueError, match="lasting"):
        retry(action, again, (0, 0))
    assert calls == 1


def test_names_that_are_not_ours_stay_on_one_line() -> None:
    assert shown("a\nb\x1b[2J\u202fé😀") == r"a\nb\x1b[2J\u202fé😀"
    assert shown("\udcff") == r"\udcff"
    assert str(AtelierError("x\ry")) == r"x\ry"


def test_the_error_of_a_command_of_ours_bears_the_name_once() -> None:
    code = "import sys; sys.exit('atelier: pictures: no such folder')"
    with pytest.raises(AtelierError, match=r"^atelier ingest: pictures: no such folder$"):
        run([sys.executable, "-c", code], what="atelier ingest")


@pytest.mark.parametrize(("said", "expected"), [("3", 3), (" 5,2", 5), ("", None), ("0", None), ("all", None)])
def test_as_many_processors_are_used_as_the_environment_says_or_all(
    said: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert processors() == (expected or 7)

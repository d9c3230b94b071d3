from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path, PurePath

import pytest

from atelier.files import (
    LITTER,
    atomic_directory,
    digest,
    folder_digest,
    is_litter,
    read_limited,
    remove_folder,
    write_atomic,
)

# writes or removes the folder of its first argument, and kills itself at the event of the third
DOOMED = """
import signal, sys
from pathlib import Path
from atelier import files
from killing import kill_at
target = Path(sys.argv[1])
kill_at(int(sys.argv[3]), signal.SIGKILL, str(target.parent))
if sys.argv[2] == "remove":
    files.remove_folder(target)
elif sys.argv[2] == "file":
    files.write_atomic(target / "old", "new")
else:
    with files.atomic_directory(target) as folder:
        (folder / "new").write_text("new")
        (folder / "more").mkdir()
"""


def killed_at(event: int, action: str, target: Path) -> bool:
    """Whether the process got as far as that event."""
    command = [sys.executable, "-c", DOOMED, str(target), action, str(event)]
    path = os.pathsep.join(sys.path)
    code = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": path}).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


def make(target: Path, name: str) -> None:
    with atomic_directory(target) as folder:
        (folder / name).write_text(name)


def fail(target: Path) -> None:
    with atomic_directory(target) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError


def test_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_keeps_the_old_directory(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        fail(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("action", ["write", "remove", "file"])
def test_kill_at_any_moment_leaves_old_or_new_and_the_next_writer_cleans_up(tmp_path: Path, action: str) -> None:
    target, event, found = tmp_path / "out", 1, set[str]()
    make(target, "old")
    while killed_at(event, action, target):
        if action == "file":
            write_atomic(target / "next", "")  # leaves the rest of another file alone
            write_atomic(target / "old", (target / "old").read_text())
            (target / "next").unlink()
            assert [path.name for path in target.iterdir()] == ["old"]
            found.add((target / "old").read_text())
        else:
            with pytest.raises(RuntimeError):
                fail(target)  # even a writer that fails restores what the kill had moved away
            found.add(" ".join(sorted(path.name for path in target.iterdir())) if target.exists() else "nothing")
        assert {path.name for path in tmp_path.iterdir()} <= {"out"}
        remove_folder(target)
        make(target, "old")
        event += 1
    assert event > 4
    assert found == {"write": {"old", "more new"}, "remove": {"old", "nothing"}, "file": {"old", "new"}}[action]


def test_what_a_process_left_that_nobody_waited_for_is_cleaned_up(tmp_path: Path) -> None:
    """In a container whose first process waits for none, those that ended stay in the list of processes."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / f".out.{ended.pid}.partial").mkdir()
    make(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    ended.wait()


def test_two_writers_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with ExitStack() as stack:
        stack.enter_context(atomic_directory(target))
        with atomic_directory(tmp_path / "other"):  # another target is free
            pass
        code = (
            "import sys; from pathlib import Path; from atelier import files; files.hold(Path(sys.argv[1])).__enter__()"
        )
        second = [sys.executable, "-c", code, str(target)]
        result = subprocess.run(second, check=False, capture_output=True, text=True)
        assert re.search(
            rf"AtelierError: {target}: process {os.getpid()} on {os.uname().nodename}, since 20.* is writing it; wait",
            result.stderr,
        )
    assert subprocess.run(second, check=False).returncode == 0  # and ends while it holds it
    make(target, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_child_does_not_hold_what_its_killed_parent_held(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess, sys
from pathlib import Path
from atelier import files
files.hold(Path(sys.argv[1])).__enter__()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE) as parent:
        assert parent.wait() == -signal.SIGKILL
        make(tmp_path / "out", "new")
        assert parent.stdin is not None
        parent.stdin.close()


def test_folders_that_cannot_be_renamed_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    lower = tmp_path / "out"

    def as_on_overlayfs(path: Path, target: Path) -> Path:
        if path == lower and (path / "old").exists():
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))
        return rename(path, target)

    make(lower, "old")
    monkeypatch.setattr(Path, "rename", as_on_overlayfs)
    make(lower, "new")
    assert [path.name for path in lower.iterdir()] == ["new"]
    make(lower, "old")
    remove_folder(lower)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_fsynced_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", of_files_alone)
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "new").exists()


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_digest_sees_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a", "1"), ("b", "1"), ("a", "2")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        digests.add(folder_digest(folder))
    assert len(digests) == 3


def test_what_file_managers_and_editors_leave_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("1")
    before = folder_digest(tmp_path)
    for name in (".DS_Store", "._a.png", "Thumbs.db", "a.png~", ".a.png.swp", ".#a.png", "#a.png#"):
        (tmp_path / name).write_text("2")
        assert is_litter(PurePath(name))
    assert folder_digest(tmp_path) == before
    for name in ("a#.png", ".hidden", "a.swp.png", ".a.partial"):
        assert not is_litter(PurePath(name))


def test_dvc_ignores_the_same_names() -> None:
    lines = (Path(__file__).parents[1] / ".dvcignore").read_text().splitlines()
    assert tuple(line.removeprefix("\\") for line in lines if not line.startswith("# ")) == LITTER


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (digest, lambda path: read_limited(path, 10)):
        with pytest.raises(OSError, match="is not a regular file"):
            read(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        digest(tmp_path)

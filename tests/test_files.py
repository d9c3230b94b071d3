from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path, PurePath

import pytest

from atelier.files import LITTER, atomic_directory, folder_digest, is_litter, write_atomic

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path, PurePath
from atelier import files
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "while-writing":
    with files.atomic_directory(Path(sys.argv[1])) as folder:
        (folder / "part").write_text("half")
        die()
rename = Path.rename
def rename_then_die(self, target):
    rename(self, target)
    die()
Path.rename = rename_then_die  # dies once the old folder is out of the way
with files.atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "new").write_text("new")
"""


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


@pytest.mark.parametrize("moment", ["while-writing", "while-swapping"])
def test_kill_leaves_old_or_nothing_and_the_next_writer_cleans_up(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "out"
    make(target, "old")
    result = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(target), moment], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not target.exists() or [path.name for path in target.iterdir()] == ["old"]
    with pytest.raises(RuntimeError):
        fail(target)  # even a writer that fails restores what the kill had moved away
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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

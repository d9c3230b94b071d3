"""Files that are complete or absent: atomic writes, atomic folders, digests."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

# what file managers and editors leave in a folder; .dvcignore says the same to DVC
LITTER = (
    *(".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory"),
    *("*~", ".*.sw?", ".#*", "#*#", "__pycache__", "*.pyc"),
)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """One spelling for every JSON file of the project, so that equal values are equal bytes."""
    return json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of `to_json`."""
    write_atomic(path, to_json(value))


def read_json(path: Path) -> Any:
    """Parse a JSON file written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes the place of `target`, on failure it goes.

    A kill at any moment leaves `target` as it was, or the next call restores it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clean_up_after_killed_writers(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _fsync(path)
        _fsync(partial)
        _swap(partial, target)
    except OSError as error:
        error.filename = error.filename or str(target)  # a full disk does not say which file it was
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    _fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up_after_killed_writers(target: Path) -> None:
    """Remove what a killed process left beside `target`; a swap cut in the middle is undone."""
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for partial in target.parent.glob(f".{target.name}.*.partial"):
        pid = int(partial.name.split(".")[-2])
        if pid == os.getpid() or not is_running(pid):
            shutil.rmtree(partial)


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives, be it ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Hex digest of bytes in memory."""
    return hashlib.new(algorithm, data).hexdigest()


def is_litter(name: PurePath) -> bool:
    """Whether a file, by its name relative to a folder that is looked at, is none of its content."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in name.parts for pattern in LITTER)


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder and the folders in it, sorted, without litter."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_litter(path.relative_to(folder)))


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted (relative name, sha256) pairs of every file below `folder`."""
    lines = [f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_below(folder)]
    return digest_of("".join(lines).encode())

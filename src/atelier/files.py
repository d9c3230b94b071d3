"""Files that are complete or absent: atomic writes, atomic folders, digests; and who may write them."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import glob
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from atelier.errors import AtelierError, InputError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what file systems without locks answer
NO_FOLDER_FSYNC = {errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP}  # and those whose folders cannot be fsynced

# what file managers and editors leave in a folder; .dvcignore says the same to DVC
LITTER = (
    *(".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory"),
    *("*~", ".*.sw?", ".#*", "#*#", "__pycache__", "*.pyc"),
)


def write_atomic(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = _beside(path, "partial")
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


def owner(root: Path) -> Path:
    """The workspace that keeps what is to last of `root`: `dvc exp run --temp` runs in a folder that it removes."""
    root = root.resolve()
    for folder in (root, *root.parents):
        if (folder / ".dvc").is_dir():
            kept, found, _ = str(folder).partition("/.dvc/tmp/exps/")
            return Path(kept) / root.relative_to(folder) if found else root
    return root


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """The content of a file; of a larger one a byte more than the limit, which tells it.

    Raises:
        OSError: if it cannot be read, or is a folder, a device or a pipe, which nobody may ever write to.
    """
    with _open_regular(path) as file:
        return file.read(limit_bytes + 1)


def _open_regular(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    said = os.strerror(number) if number == errno.EISDIR else "is not a regular file; put one in its place"
    raise OSError(number, said, str(path))


@contextmanager
def hold(target: Path) -> Iterator[None]:
    """Keep all other processes from writing `target`, until this is left or the process ends, however it ends.

    A lock file beside `target` says who holds it. What killed processes left there is cleaned up first. Where the file
    system has no locks, nothing is held.

    Raises:
        AtelierError: if another process holds it.
    """
    place = os.path.abspath(target)
    if place in _held:
        yield
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(target)
    _held.add(place)
    try:
        _restore(target)
        _remove_leftovers(target)
        yield
    finally:
        _held.discard(place)
        Path(lock.name).unlink(missing_ok=True)
        lock.close()


_held = set[str]()  # by this process


def _lock(target: Path) -> IO[bytes]:
    path = target.with_name(f".{target.name}.lock")
    while True:
        lock, current = path.open("a+b"), False
        try:
            # of the process alone, unlike flock's: a child that outlives it does not hold it
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS | {errno.EAGAIN, errno.EACCES}:
                raise
            if error.errno not in NO_LOCKS:
                lock.seek(0)
                owner = lock.read(200).decode(errors="replace") or "another process"
                lock.close()
                raise AtelierError(f"{target}: {owner} is writing it; wait for its end, or end it") from None
        with suppress(FileNotFoundError):
            current = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        if current:
            lock.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            lock.write(f"process {os.getpid()} on {os.uname().nodename}, since {now},".encode())
            lock.flush()
            return lock
        lock.close()  # who held it has just removed it


def held_by(target: Path) -> str | None:
    """Which process, where and since when, keeps others from writing `target`; None if none does.

    It asks for the lock and does not take it, or a process that starts at that moment would be refused. Only Linux is
    asked like this; elsewhere a lock's file is taken for a lock.
    """
    try:
        with target.with_name(f".{target.name}.lock").open("r+b") as lock:
            if sys.platform == "linux":
                whole_file = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                (kind,) = struct.unpack_from("h", fcntl.fcntl(lock, fcntl.F_GETLK, whole_file))
                if kind == fcntl.F_UNLCK:
                    return None
            return lock.read(200).decode(errors="replace").rstrip(",") or "another process"
    except OSError:  # no lock, or a file system without them
        return None


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes the place of `target`, on failure it goes.

    A kill at any moment leaves `target` as it was, or the next call restores it.

    Raises:
        AtelierError: if another process is writing `target`.
    """
    with hold(target):
        partial = _beside(target, "partial")
        partial.mkdir()
        try:
            yield partial
            for path in sorted(partial.rglob("*")):
                fsync(path)
            fsync(partial)
            _swap(partial, target)
        except OSError as error:
            error.filename = error.filename or str(target)  # a full disk does not say which file it was
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if there is one, all at once: a kill leaves it whole, or a rest that the next writer removes."""
    _remove_leftovers(folder)
    aside = _beside(folder, "removed")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = folder  # in a lower layer of overlayfs, whose folders cannot be renamed
    _remove(aside)


def _swap(new: Path, target: Path) -> None:
    old, copy = _kept(target)
    if os.path.lexists(target):
        try:
            target.rename(old)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            aside = _beside(target, "removed")  # as in `remove_folder`
            shutil.copytree(target, aside, symlinks=True)
            aside.rename(copy)
            _remove(target)
    new.rename(target)
    fsync(target.parent)
    for kept in (old, copy):
        remove_folder(kept)


def _restore(target: Path) -> None:
    """Undo a swap that a kill cut in the middle."""
    old, copy = _kept(target)
    if copy.exists():  # `target` may be there in part
        remove_folder(target)
        copy.rename(target)
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)
    remove_folder(old)


def _kept(target: Path) -> tuple[Path, Path]:
    """Where what `target` was is kept during a swap, moved or copied."""
    return target.with_name(f".{target.name}.old"), target.with_name(f".{target.name}.copy")


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{what}")


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes had not yet put into the place of `target`, or not yet removed."""
    prefix = f".{target.name}."
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        pid, _, what = leftover.name.removeprefix(prefix).partition(".")
        if what in ("partial", "removed") and pid.isdigit() and (int(pid) == os.getpid() or not is_running(int(pid))):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives, be it ours or not; one that nobody has waited for yet does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def fsync(path: Path) -> None:
    """Have a file or folder written to the disk; folders that cannot be are left to the file system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_FSYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in blocks.

    Raises:
        OSError: if it cannot be read, or is a folder, a device or a pipe, which nobody may ever write to.
    """
    with _open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]  # a BufferedReader


def digest_of(data: bytes | memoryview, algorithm: str = "sha256") -> str:
    """Hex digest of bytes in memory."""
    return hashlib.new(algorithm, data).hexdigest()


def is_litter(name: PurePath) -> bool:
    """Whether a file, by its name relative to a folder that is looked at, is none of its content."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in name.parts for pattern in LITTER)


def require_free(target: Path, names: Collection[str], option: str) -> None:
    """Nothing may lie in a folder but what was written there before, which goes.

    Args:
        target: the folder.
        names: what is written there, at its top.
        option: that names the folder, for the message.

    Raises:
        InputError: if something else lies there, or it is no folder.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{option} {target}: is a file; name a folder")
    for path in sorted(target.glob("*")):
        if path.name not in names and not is_litter(PurePath(path.name)):
            raise InputError(f"{option} {target}: holds {path.name}, which would go; name a folder of its own")


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder and the folders in it, sorted, without litter."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_litter(path.relative_to(folder)))


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted (relative name, sha256) pairs of every file below `folder`."""
    lines = [f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_below(folder)]
    return digest_of("".join(lines).encode())

"""What lies in a folder, a .zip or a .tar(.gz): files by safe names, read without ever unpacking by name."""

from __future__ import annotations

import functools
import gzip
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from atelier.config.records import LeftOut
from atelier.errors import AtelierError, InputError

Wanted = Callable[[str], bool]
NOT_A_PICTURE = "not a picture"  # by its name
HEADER_LIMIT_BYTES = 16 << 20  # no honest member has longer names or attributes
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Limits:
    """What a source may hold at most, unpacked."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One file: its name with forward slashes, relative to the source, its size, and how to read it."""

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]


def is_archive(path: str) -> bool:
    """Whether a name ends like an archive that can be read."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


@contextmanager
def open_source(
    path: Path, wanted: Wanted, limits: Limits, staging: Path
) -> Iterator[tuple[list[Entry], list[LeftOut]]]:
    """Yield the files of a folder or an archive whose names are `wanted`, and those left out with reasons.

    Args:
        path: a folder or an archive.
        wanted: told a file's name, whether it is to be read at all.
        limits: a source beyond them is refused before it is unpacked.
        staging: an existing folder for what has to be unpacked, under numbers for names.

    Raises:
        InputError: if there is no such source, or it is neither.
        AtelierError: if the archive is broken, too large, or has a member that no honest archive has.
    """
    with ExitStack() as stack:
        if path.is_dir():
            found = _list_folder(path, limits)
        elif not path.is_file():
            raise InputError(f"{path}: no such folder or archive; give one that exists")
        elif not is_archive(path.name):
            raise InputError(f"{path}: not an archive; give a folder, or one of {', '.join(ARCHIVE_SUFFIXES)}")
        elif path.suffix.lower() == ".zip":
            found = _list_zip(path, limits, stack)
        else:
            found = _unpack_tar(path, wanted, limits, staging)
        entries, left_out = found
        unwanted = [LeftOut(entry.name, NOT_A_PICTURE) for entry in entries if not wanted(entry.name)]
        yield [entry for entry in entries if wanted(entry.name)], left_out + unwanted


def _list_folder(root: Path, limits: Limits) -> tuple[list[Entry], list[LeftOut]]:
    entries, left_out, total = list[Entry](), list[LeftOut](), 0
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders.sort()
        for name in sorted(names + [name for name in folders if (Path(folder) / name).is_symlink()]):
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            status = path.lstat()
            if not printable(relative):
                left_out.append(LeftOut(ascii(relative)[1:-1], "its name is not plain text; rename it"))
            elif stat.S_ISLNK(status.st_mode):
                left_out.append(LeftOut(relative, "a link; put the file itself there"))
            elif not stat.S_ISREG(status.st_mode):
                left_out.append(LeftOut(relative, "a device, pipe or socket"))
            else:
                entries.append(Entry(relative, status.st_size, _reading(path)))
                total += status.st_size
            _check_limits(str(root), len(entries) + len(left_out), total, limits)
    return entries, left_out


def _reading(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _raise(error: OSError) -> None:
    raise error


def _list_zip(path: Path, limits: Limits, stack: ExitStack) -> tuple[list[Entry], list[LeftOut]]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise AtelierError(f"{path}: not a whole zip archive ({_first_line(error)}); get it again") from None
    entries, left_out, total, seen = list[Entry](), list[LeftOut](), 0, set[str]()
    _check_limits(str(path), len(archive.infolist()), 0, limits)
    for info in archive.infolist():
        name = _safe_member_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused_member(path, name, "a link or a device")
        if info.is_dir():
            continue
        total += info.file_size
        _check_limits(str(path), len(entries), total, limits)
        if info.flag_bits & 1:
            raise AtelierError(f"{path}: '{name}' is encrypted; give an archive without a password")
        if name in seen:
            left_out.append(LeftOut(name, "its name is twice in the archive"))
            continue
        seen.add(name)
        entries.append(Entry(name, info.file_size, functools.partial(_open_zipped, archive, info, path)))
    return entries, left_out


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> IO[bytes]:
    try:
        return archive.open(info)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise AtelierError(f"{path}: '{info.filename}' cannot be read ({_first_line(error)}); pack it anew") from None


class _Guarded(io.RawIOBase):
    """A stream that refuses to be read in pieces no honest header needs: tarfile reads headers whole."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data: bytes = self.stream.read(size)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())


def _unpack_tar(path: Path, wanted: Wanted, limits: Limits, staging: Path) -> tuple[list[Entry], list[LeftOut]]:
    """A tar cannot be read in any order: its wanted members are copied to `staging` as 0, 1, 2, …"""
    entries, left_out, total, count, seen = list[Entry](), list[LeftOut](), 0, 0, set[str]()
    try:
        with path.open("rb") as file:
            opener: Any = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as stream, tarfile.open(fileobj=_Guarded(stream), mode="r:") as archive:
            for member in archive:
                name = _safe_member_name(path, member.name)
                if not (member.isfile() or member.isdir()):
                    raise _refused_member(path, name, "a link or a device")
                count += 1
                total += member.size
                _check_limits(str(path), count, total, limits)
                if member.isdir():
                    continue
                target = staging / str(count)
                if name in seen:
                    left_out.append(LeftOut(name, "its name is twice in the archive"))
                elif wanted(name):
                    content = archive.extractfile(member)
                    assert content is not None
                    with content, target.open("wb") as copy:
                        shutil.copyfileobj(content, copy, 1 << 20)
                    if target.stat().st_size != member.size:
                        raise tarfile.ReadError(f"'{name}' ends early")
                    entries.append(Entry(name, member.size, _reading(target)))
                else:
                    entries.append(Entry(name, member.size, io.BytesIO))
                seen.add(name)
                archive.members = []  # type: ignore[attr-defined]  # or a million members stay in memory
            # the checksum stands at the very end, after what tarfile reads
            while block := stream.read(1 << 20):
                total += len(block)
                _check_limits(str(path), count, total, limits)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise AtelierError(f"{path}: not a whole tar archive ({_first_line(error)}); get it again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise AtelierError(f"{path}: not a whole tar archive ({_first_line(error)}); get it again") from None
    return entries, left_out


def _safe_member_name(path: Path, name: str) -> str:
    """Return the name of an archive's member with forward slashes; raise `AtelierError` if it leads outside."""
    name = name.replace("\\", "/")
    if not printable(name):
        raise _refused_member(path, ascii(name)[1:-1], "a name that is not plain text")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refused_member(path, name, "an absolute path")
    if ".." in PurePosixPath(name).parts:
        raise _refused_member(path, name, "a path with '..'")
    return PurePosixPath(name).as_posix()


def _refused_member(path: Path, name: str, what: str) -> AtelierError:
    return AtelierError(f"{path}: member '{name}' has {what}; refused, get the archive from a source you trust")


def _check_limits(where: str, files: int, total_bytes: int, limits: Limits) -> None:
    if files > limits.files:
        raise AtelierError(f"{where}: holds more than {limits.files} files; raise ingest.limit_files if that is right")
    if total_bytes > limits.bytes:
        raise AtelierError(
            f"{where}: unpacks to more than {limits.bytes / 1e9:g} GB; raise ingest.limit_gigabytes if that is right"
        )


def printable(name: str) -> bool:
    """Whether a name is text that fits on one line."""
    return name.isprintable() and name != ""


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]

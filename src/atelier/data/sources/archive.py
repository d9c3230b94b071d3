"""What lies in a folder, a .zip or a .tar(.gz): files by name, read without ever unpacking by name."""

import functools
import hashlib
import io
import os
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from atelier.config.records import LeftOut
from atelier.data.pack import BLOCK_BYTES, Entry, blocks, reading
from atelier.errors import AtelierError, InputError

Judge = Callable[[str, bytes], LeftOut | None]  # told a file's name and how it begins; None: it is wanted
HEAD_BYTES = 64
GZIP = b"\x1f\x8b"
HEADER_LIMIT_BYTES = 16 << 20  # no honest member of a tar has longer names or attributes
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
NOT_DATA = "hidden, or a system's own"
# of thumbnails, deleted files and earlier versions; those whose names begin with a dot need no list
SYSTEM_FOLDERS = {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"}
SYSTEM_FOLDERS |= {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", "__pycache__"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


@dataclass(frozen=True)
class Request:
    """What a source is told beside an address."""

    key: str  # of the parameter that holds the address, for messages
    staging: Path  # what an interrupted download leaves here is not fetched again
    limit_files: int  # of all that it holds, unpacked
    limit_bytes: int
    timeout_seconds: float  # of each connection


@dataclass
class Contents:
    """The files of a source that are wanted, each name once, and what is left out."""

    where: str
    request: Request
    entries: dict[str, Entry] = field(default_factory=dict)
    left_out: dict[LeftOut, None] = field(default_factory=dict)  # in order, each once
    files: int = 0
    bytes: int = 0

    def count(self, size: int) -> None:
        """One more file of `size` bytes; `AtelierError` beyond the limits."""
        self.files += 1
        self.bytes += size
        self.check(self.files, self.bytes)

    def check(self, files: int, size: int) -> None:
        """`AtelierError` if a source of so many files and bytes is beyond the limits."""
        if files > self.request.limit_files:
            raise AtelierError(
                f"{self.where}: holds more than {self.request.limit_files} files; raise ingest.limit_files if that is "
                "right"
            )
        if size > self.request.limit_bytes:
            raise AtelierError(
                f"{self.where}: unpacks to more than {self.request.limit_bytes / 1e9:g} GB; raise "
                "ingest.limit_gigabytes if that is right"
            )

    def leave_out(self, name: str, reason: str, *, is_picture: bool) -> None:
        """List a file or a folder that is not taken."""
        self.left_out[LeftOut(_text(name), reason, is_picture)] = None

    def is_hidden(self, name: str) -> bool:
        """Whether a file lies in a folder that holds no data of the user's; the outermost such folder is listed."""
        folders = name.split("/")[:-1]
        for depth, folder in enumerate(folders, start=1):
            if folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS:
                if folder != "__MACOSX":  # comes and goes with the way a folder was packed
                    self.leave_out("/".join(folders[:depth]), NOT_DATA, is_picture=False)
                return True
        return False


def is_archive(path: str) -> bool:
    """Whether a name ends like an archive that can be read."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def read_contents(
    where: str, source: Path | Iterable[Entry], judge: Judge, request: Request, stack: ExitStack
) -> Contents:
    """List the files of a folder, an archive, or a source that lists its own; those that are wanted can be read.

    Args:
        where: its name, for messages.
        source: what to list.
        judge: of each file.
        request: its limits are checked before anything is unpacked, to its staging, under numbers for names.
        stack: keeps an archive open, and what is unpacked, until it is left.

    Raises:
        InputError: if there is no such source, or it is neither folder nor archive.
        AtelierError: if the archive is broken, too large, or has a member that no honest archive has.
    """
    contents = Contents(where, request)
    found, unpacked = _list(source, contents, judge, stack)
    for entry in found:
        if contents.is_hidden(entry.name):
            continue
        contents.count(entry.size_bytes)
        entry = replace(entry, name=_text(entry.name))
        rest = blocks(entry, BLOCK_BYTES if unpacked else HEAD_BYTES)
        head = next(rest, b"")
        file = PurePosixPath(entry.name).name
        if refused := judge(entry.name, head[:HEAD_BYTES]):
            if file.lower() not in SYSTEM_FILES and not file.startswith("."):
                contents.left_out[refused] = None
        elif file.startswith("."):
            contents.leave_out(entry.name, NOT_DATA, is_picture=False)
        else:
            if unpacked:
                entry = _unpack(entry, head, rest, unpacked / str(contents.files))
            if (first := contents.entries.setdefault(entry.name, entry)) is not entry:
                same = _digest(first) == _digest(entry)
                reason = "its name is twice in the source" + (", and so are its bytes" if same else "")
                contents.leave_out(entry.name, reason, is_picture=not same)
    return contents


def _list(
    source: Path | Iterable[Entry], contents: Contents, judge: Judge, stack: ExitStack
) -> tuple[Iterable[Entry], Path | None]:
    """The files of a source, and a folder to unpack them to if they can only be read as they come."""
    if not isinstance(source, Path):
        return source, None
    if source.is_dir():
        return _list_folder(source, contents, judge), None
    if not source.is_file():
        raise InputError(f"{source}: no such folder or archive; give one that exists")
    with source.open("rb") as file:
        head = file.read(512)
    name = source.name.lower()
    if head.startswith(b"PK") or name.endswith(".zip"):
        return _list_zip(source, head, contents, stack), None
    if head.startswith(GZIP) or head[257:262] == b"ustar" or is_archive(name):
        contents.request.staging.mkdir(parents=True, exist_ok=True)
        unpacked = stack.enter_context(tempfile.TemporaryDirectory(dir=contents.request.staging))
        return _list_tar(source, contents, stack), Path(unpacked)
    raise InputError(f"{source}: not an archive; give a folder, or one of {', '.join(ARCHIVE_SUFFIXES)}")


def _unpack(entry: Entry, head: bytes, rest: Iterable[bytes], target: Path) -> Entry:
    with target.open("wb") as copy:
        copy.write(head)
        for block in rest:
            copy.write(block)
    return replace(entry, open=reading(target))


def _digest(entry: Entry) -> bytes:
    sha256 = hashlib.sha256()
    for block in blocks(entry, BLOCK_BYTES):
        sha256.update(block)
    return sha256.digest()


def _text(name: str) -> str:
    """A name as text in its composed form; bytes in it that are no UTF-8 are spelt out."""
    data = name.encode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", data.decode("utf-8", "backslashreplace"))


# --- folders ----------------------------------------------------------------------------------------------------


def _list_folder(root: Path, contents: Contents, judge: Judge) -> Iterator[Entry]:
    """Links are followed to what lies outside of the folder; what lies inside is taken by its own name."""
    places = [Path(os.path.realpath(root))]

    def is_new(link: Path, name: str, *, is_folder: bool) -> bool:
        target = Path(os.path.realpath(link))
        if any(target.is_relative_to(place) for place in places):
            contents.leave_out(name, "a link to what is taken by another name", is_picture=False)
        elif any(place.is_relative_to(target) for place in places):
            contents.leave_out(name, "a link to a folder around it", is_picture=False)
        else:
            places.extend([target] if is_folder else [])
            return True
        return False

    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        prefix = Path(folder).relative_to(root)
        for name in sorted(folders):
            relative, path = (prefix / name).as_posix(), Path(folder, name)
            if contents.is_hidden(f"{relative}/") or (path.is_symlink() and not is_new(path, relative, is_folder=True)):
                folders.remove(name)
        folders.sort()
        for name in sorted(files):
            relative, path = (prefix / name).as_posix(), Path(folder, name)
            try:
                status = path.stat()
            except OSError:
                refused = judge(relative, b"")
                is_picture = not path.suffix or refused is None or refused.is_picture
                contents.leave_out(relative, "a link to nothing that is there", is_picture=is_picture)
                continue
            if not stat.S_ISREG(status.st_mode):
                contents.leave_out(relative, "a device, pipe or socket", is_picture=False)
            elif not path.is_symlink() or is_new(path, relative, is_folder=False):
                yield Entry(relative, status.st_size, reading(path), str(root))


def _raise(error: OSError) -> None:
    raise error


# --- zip --------------------------------------------------------------------------------------------------------


def _list_zip(path: Path, head: bytes, contents: Contents, stack: ExitStack) -> Iterator[Entry]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        offset = min((info.header_offset for info in archive.infolist()), default=0)
        if offset < 0:
            raise zipfile.BadZipFile("its beginning is missing")
        if offset > 0 and head.startswith(b"PK"):  # a program that unpacks itself begins otherwise
            raise zipfile.BadZipFile("it begins with another archive, or with files that its directory does not list")
    except Exception as error:  # BadZipFile, NotImplementedError, OSError, struct.error and more
        raise AtelierError(
            f"{path}: not a whole zip archive ({error}); get it again, or join its parts if it is split"
        ) from None
    for info in archive.infolist():
        name = _member_name(path, _decoded(info))
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused_member(path, name, "a link or a device")
        if info.flag_bits & 1:
            raise AtelierError(f"{path}: '{name}' is encrypted; give an archive without a password")
        if info.is_dir():
            contents.is_hidden(f"{name}/")
        else:
            yield Entry(name, info.file_size, functools.partial(archive.open, info), str(path))


def _decoded(info: zipfile.ZipInfo) -> str:
    """The name of a member: many programs write UTF-8 and do not say so, or say it in a field of their own."""
    name = info.orig_filename
    if info.flag_bits & 0x800:
        return name
    data, extra = name.encode("cp437"), info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        # Info-ZIP's: version, CRC-32 of the name that it stands for, UTF-8
        if kind == 0x7075 and extra[4:9] == struct.pack("<BL", 1, zlib.crc32(data)):
            data = extra[9 : 4 + size]
        extra = extra[4 + size :]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return name


# --- tar --------------------------------------------------------------------------------------------------------


class _Gunzipped(io.RawIOBase):
    """The content of a gzip file of any number of members. Python's own reader takes what may pad it byte by byte.

    Raises:
        EOFError: if it ends within a member.
        zlib.error: if it is damaged.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self.packed, self.rest = packed, b""
        self.member: Any = None  # zlib's, while one is open

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            block, self.rest = self.rest or self.packed.read(BLOCK_BYTES), b""
            if self.member is None:
                if not block:
                    return 0
                block = block.lstrip(b"\0")  # padding
                self.member = zlib.decompressobj(16 + zlib.MAX_WBITS) if block else None
            if self.member is not None:
                content = self.member.decompress(block, len(buffer))
                self.rest = self.member.unconsumed_tail
                if self.member.eof:
                    self.rest, self.member = self.member.unused_data, None
                elif not content and not block:
                    raise EOFError("it ends within what is packed")
        buffer[: len(content)] = content
        return len(content)


class _Forward(io.RawIOBase):
    """A stream read from front to end, and never in pieces that no honest header needs: tarfile reads headers whole."""

    def __init__(self, stream: IO[bytes], contents: Contents) -> None:
        self.stream, self.contents, self.position, self.ahead = stream, contents, 0, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.ahead[:size] or self.stream.read(size)
        self.ahead = self.ahead[len(data) :]
        self.position += len(data)
        self.contents.check(0, self.position)
        return data

    def put_back(self, block: bytes) -> None:
        self.ahead = block + self.ahead
        self.position -= len(block)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset < self.position:
            raise tarfile.ReadError("a member before the one that was read")
        while offset > self.position and self.read(min(offset - self.position, BLOCK_BYTES)):
            pass
        return self.position

    def tell(self) -> int:
        return self.position


def _list_tar(path: Path, contents: Contents, stack: ExitStack) -> Iterator[Entry]:
    file: IO[bytes] = stack.enter_context(path.open("rb"))
    is_packed = file.read(2) == GZIP
    file.seek(0)
    try:
        stream = _Forward(io.BufferedReader(_Gunzipped(file), BLOCK_BYTES) if is_packed else file, contents)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in _members(archive, stream):
                name = _member_name(path, member.name)
                if member.isfile():
                    yield Entry(name, member.size, functools.partial(_member, archive, member), str(path))
                elif member.isdir():
                    contents.count(0)
                    contents.is_hidden(f"{name}/")
                else:
                    raise _refused_member(path, name, "a link or a device")
    except AtelierError:
        raise
    except Exception as error:  # TarError, EOFError, zlib.error, BadGzipFile, ValueError and more
        raise AtelierError(f"{path}: not a whole tar archive ({error}); get it again") from None


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # of a file
    return content


def _members(archive: tarfile.TarFile, stream: _Forward) -> Iterator[tarfile.TarInfo]:
    """The members of all tars in a stream, since `cat a.tar b.tar` is one too, up to its very end.

    Iterating over a TarFile would take a header that is damaged for the end, and leave out what follows.
    """
    is_whole = False
    first: tarfile.TarInfo | None = archive.firstmember  # type: ignore[attr-defined]
    if first is not None:
        yield first
    else:
        archive.offset = stream.tell()
    while True:
        stream.seek(archive.offset)
        try:
            yield tarfile.TarInfo.fromtarfile(archive)
            is_whole = False
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            block = bytes(tarfile.BLOCKSIZE)
            while block and not block.strip(b"\0"):
                block = stream.read(tarfile.BLOCKSIZE)
            stream.put_back(block)
            archive.offset, is_whole = stream.tell(), True
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if is_whole:
                return
            raise tarfile.ReadError("it ends without the mark of an end") from None


# --- names ------------------------------------------------------------------------------------------------------


def _member_name(path: Path, name: str) -> str:
    """The name of an archive's member with forward slashes; `AtelierError` if it leads outside."""
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:/", name):
        raise _refused_member(path, name, "an absolute path")
    if ".." in PurePosixPath(name).parts:
        raise _refused_member(path, name, "a path with '..'")
    if "\0" in name:
        raise _refused_member(path, name, "a zero byte in its name")
    return PurePosixPath(name).as_posix()


def _refused_member(path: Path, name: str, what: str) -> AtelierError:
    return AtelierError(f"{path}: member '{name}' has {what}; refused, get the archive from a source you trust")

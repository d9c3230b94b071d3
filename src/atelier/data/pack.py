"""The raw form of a set of pictures: the original files in one uncompressed zip, and two tables of them.

One large file instead of many small ones, since those are what versioned storage is slow with; uncompressed, so that
any number of processes can read any picture; the same bytes whatever folder or archive they came from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Any

from atelier.config.records import LeftOut
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.progress import watch

PACK, SHA256, FILES, LEFT_OUT = "pictures.zip", "pictures.zip.sha256", "files.csv", "left-out.csv"
BLOCK_BYTES = 1 << 20
LIMIT_BYTES = 64_000_000  # no picture below prepare.limit_megapixels is larger


@dataclass(frozen=True)
class Entry:
    """A file of a source: its name with forward slashes, relative to the source, its size, and how to read it."""

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]
    origin: str  # the folder or archive, for messages


def reading(path: Path) -> Callable[[], IO[bytes]]:
    """How a file on this machine is read."""
    return lambda: path.open("rb")


@dataclass(frozen=True)
class PackedFile:
    """A file in the pack and the digest of its content."""

    name: str
    sha256: str


def natural_order(name: str) -> tuple[Any, ...]:
    """Sort key by which 2.png comes before 10.png."""
    words = re.split(r"([0-9]+)", name)
    # numbers are compared as text, by length first: Python makes no number of 5000 digits
    return (
        *((len(d := word.lstrip("0")), d, word) if i % 2 else (word.lower(), word) for i, word in enumerate(words)),
    )


def is_table(name: str) -> bool:
    """Whether a file holds labels; all others of a pack are pictures, or call themselves so."""
    return name.lower().endswith(".csv")


def write_pack(folder: Path, entries: Sequence[Entry], left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """Write the pack of `entries` and its tables to `folder`, in natural order; returns all that is left out.

    Raises:
        AtelierError: if a file cannot be read whole; the source is then not to be trusted with the others.
    """
    files, refused = list[PackedFile](), list(left_out)
    spellings = dict[str, str]()
    with zipfile.ZipFile(folder / PACK, "w", zipfile.ZIP_STORED) as pack:
        ordered = sorted(entries, key=lambda entry: natural_order(entry.name))
        for entry in watch(ordered, len(ordered), "pack", "file"):
            if reason := _refusal(entry, spellings.setdefault(entry.name.casefold(), entry.name)):
                refused.append(LeftOut(entry.name, reason, not is_table(entry.name)))
            else:
                files.append(_append(pack, entry))
    (folder / SHA256).write_text(f"{digest(folder / PACK)}  {PACK}\n")  # as sha256sum writes it
    refused.sort(key=lambda item: natural_order(item.file))
    _write_table(folder / FILES, PackedFile, files)
    _write_table(folder / LEFT_OUT, LeftOut, refused)
    return refused


def _refusal(entry: Entry, first: str) -> str:
    """Why a file is not packed, empty if it is; `first` of all names that differ in upper and lower case alone."""
    if first != entry.name:
        return f"the name of '{first}' but for upper and lower case; rename it"
    if entry.size_bytes > LIMIT_BYTES:
        return f"{entry.size_bytes / 1e6:.0f} MB, more than {LIMIT_BYTES / 1e6:.0f}"
    return "" if entry.size_bytes else "an empty file"


def _append(pack: zipfile.ZipFile, entry: Entry) -> PackedFile:
    info = zipfile.ZipInfo(entry.name)  # of 1980, so that equal pictures are an equal pack
    info.external_attr = 0o644 << 16
    info.file_size = entry.size_bytes
    sha256, size = hashlib.sha256(), 0
    with pack.open(info, "w") as target:
        for block in blocks(entry, BLOCK_BYTES):
            size += len(block)
            sha256.update(block)
            target.write(block)
    if size != entry.size_bytes:
        raise AtelierError(
            f"{entry.name}: {size} bytes where {entry.size_bytes} were announced; it changed, run ingest again"
        )
    return PackedFile(entry.name, sha256.hexdigest())


def blocks(entry: Entry, size: int) -> Iterator[bytes]:
    """The content of a file of a source, up to `size` bytes at a time.

    Raises:
        AtelierError: if it cannot be read to its end.
    """
    try:
        with entry.open() as source:
            while block := source.read(size):
                yield block
    except Exception as error:  # of archives: BadZipFile, zlib.error, LZMAError, EOFError, OSError and more
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AtelierError(f"{entry.origin}: '{entry.name}' cannot be read ({reason}); get it again") from None


def _write_table(path: Path, row: type, rows: Iterable[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow([field.name for field in fields(row)])
        writer.writerows([str(value) for value in astuple(item)] for item in rows)


def read_files(folder: Path, dataset: str) -> list[PackedFile]:
    """The files of a pack, in natural order."""
    return [PackedFile(*row) for row in _read_table(folder / FILES, PackedFile, dataset)]


def read_left_out(folder: Path, dataset: str) -> list[LeftOut]:
    """What ingest did not take, with reasons."""
    rows = _read_table(folder / LEFT_OUT, LeftOut, dataset)
    return [LeftOut(file, reason, is_picture == "True") for file, reason, is_picture in rows]


def read_digest(folder: Path, dataset: str) -> str:
    """The sha256 of the pack as ingest found it; what `PackReader` reads is verified file by file."""
    text = _read_text(folder / SHA256, dataset)
    if not re.fullmatch(rf"[0-9a-f]{{64}}  {re.escape(PACK)}\n", text):
        raise _altered(folder / SHA256, dataset)
    return text.split()[0]


def _read_table(path: Path, row: type, dataset: str) -> list[list[str]]:
    header = [field.name for field in fields(row)]
    try:
        found, *rows = csv.reader(io.StringIO(_read_text(path, dataset), newline=""), strict=True)
    except (csv.Error, ValueError):
        found, rows = [], []
    if found != header or any(len(row) != len(header) for row in rows):
        raise _altered(path, dataset)
    return rows


def _read_text(path: Path, dataset: str) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run 'atelier ingest {dataset}' first") from None
    except UnicodeDecodeError:
        raise _altered(path, dataset) from None


def _altered(path: Path, dataset: str) -> AtelierError:
    return AtelierError(f"{path}: not as this version of ingest writes it; run 'atelier ingest {dataset}'")


class PackReader:
    """Reads files of a pack by their names."""

    def __init__(self, folder: Path) -> None:
        self.path, dataset = folder / PACK, folder.name
        try:
            self.archive = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise InputError(f"{self.path}: missing; run 'atelier ingest {dataset}' first") from None
        except Exception:  # of what is no zip at all, zipfile raises ValueError, struct.error and more
            raise _altered(self.path, dataset) from None

    def read(self, packed: PackedFile) -> bytes:
        """The bytes of a file, verified.

        Raises:
            AtelierError: if they are not those that were packed.
        """
        try:
            if self.archive.getinfo(packed.name).file_size <= LIMIT_BYTES:
                data = self.archive.read(packed.name)
                if hashlib.sha256(data).hexdigest() == packed.sha256:
                    return data
        except Exception:  # of an altered zip, zipfile and its decompressors raise nearly anything
            pass
        raise AtelierError(f"{self.path}: '{packed.name}' was altered since it was packed; run ingest again")

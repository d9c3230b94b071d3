"""The raw form of a set of pictures: the original files in one uncompressed zip, and two tables of them.

One large file instead of many small ones, since those are what versioned storage is slow with; uncompressed, so that
any number of processes can read any picture by its place; the same bytes whatever folder or archive they came from.
"""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.config.records import LeftOut
from atelier.data.sources.archive import Entry
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.progress import watch

PACK, SHA256, FILES, LEFT_OUT = "pictures.zip", "pictures.zip.sha256", "files.csv", "left-out.csv"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PackedFile:
    """A file in the pack: where its bytes lie and their digest."""

    name: str
    offset: int
    bytes: int
    sha256: str


def natural_order(name: str) -> tuple[Any, ...]:
    """Sort key by which 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return (*((int(part), part) if i % 2 else (part.lower(), part) for i, part in enumerate(parts)),)


def write_pack(folder: Path, entries: Sequence[Entry], left_out: Iterable[LeftOut], limit_bytes: int) -> int:
    """Write the pack of `entries` and its tables to `folder`, in natural order; returns the number of files.

    Raises:
        AtelierError: if a file cannot be read whole; the source is then not to be trusted with the others.
    """
    files, refused = list[PackedFile](), list(left_out)
    spellings = dict[str, str]()
    with zipfile.ZipFile(folder / PACK, "w", zipfile.ZIP_STORED) as pack:
        ordered = sorted(entries, key=lambda entry: natural_order(entry.name))
        for entry in watch(ordered, len(ordered), "pack", "file"):
            if (other := spellings.setdefault(entry.name.casefold(), entry.name)) != entry.name:
                refused.append(LeftOut(entry.name, f"the name of '{other}' but for upper and lower case; rename it"))
            elif entry.size_bytes > limit_bytes:
                refused.append(
                    LeftOut(entry.name, f"{entry.size_bytes / 1e6:.0f} MB, more than {limit_bytes / 1e6:.0f}")
                )
            elif entry.size_bytes == 0:
                refused.append(LeftOut(entry.name, "an empty file"))
            else:
                files.append(_append(pack, entry))
    (folder / SHA256).write_text(f"{digest(folder / PACK)}  {PACK}\n")  # as sha256sum writes it
    _write_table(folder / FILES, ("name", "offset", "bytes", "sha256"), [vars(file).values() for file in files])
    refused.sort(key=lambda item: natural_order(item.file))
    _write_table(folder / LEFT_OUT, ("file", "reason"), [(item.file, item.reason) for item in refused])
    return len(files)


def _append(pack: zipfile.ZipFile, entry: Entry) -> PackedFile:
    info = zipfile.ZipInfo(entry.name)  # of 1980, so that equal pictures are an equal pack
    info.external_attr = 0o644 << 16
    info.file_size = entry.size_bytes
    sha256, size = hashlib.sha256(), 0
    try:
        with entry.open() as source, pack.open(info, "w") as target:
            offset = info.header_offset + len(info.FileHeader(False))
            while block := source.read(BLOCK_BYTES):
                size += len(block)
                sha256.update(block)
                target.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise AtelierError(f"{entry.name}: broken in its archive ({error}); get the archive again") from None
    if size != entry.size_bytes:
        raise AtelierError(
            f"{entry.name}: {size} bytes where {entry.size_bytes} were announced; it changed, run ingest again"
        )
    return PackedFile(entry.name, offset, size, sha256.hexdigest())


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_files(folder: Path, dataset: str) -> list[PackedFile]:
    """The files of a pack, in natural order."""
    if not (folder / PACK).is_file():
        raise InputError(f"{folder / PACK}: missing; run 'atelier ingest {dataset}' first")
    return [
        PackedFile(name, int(offset), int(size), sha256)
        for name, offset, size, sha256 in _read_table(folder / FILES, dataset, 4)
    ]


def read_left_out(folder: Path, dataset: str) -> list[LeftOut]:
    """What ingest did not take, with reasons."""
    return [LeftOut(file, reason) for file, reason in _read_table(folder / LEFT_OUT, dataset, 2)]


def _read_table(path: Path, dataset: str, columns: int) -> list[list[str]]:
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier ingest {dataset}' first")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
    except (UnicodeDecodeError, csv.Error):
        rows = [[]]
    if any(len(row) != columns for row in rows):
        raise AtelierError(f"{path}: altered, it is not the table that ingest wrote; run 'atelier ingest {dataset}'")
    return rows


class PackReader:
    """Reads files of a pack by their place."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PACK
        self.file = self.path.open("rb")

    def read(self, packed: PackedFile) -> bytes:
        """The bytes of a file, verified; `AtelierError` if they are not those that were packed."""
        self.file.seek(packed.offset)
        data = self.file.read(packed.bytes)
        if hashlib.sha256(data).hexdigest() != packed.sha256:
            raise AtelierError(f"{self.path}: '{packed.name}' was altered since it was packed; run ingest again")
        return data

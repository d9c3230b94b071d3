"""The raw form of a set of pictures: the original files in one uncompressed zip, and two tables of them.

One large file instead of many small ones, since those are what versioned storage is slow with; uncompressed, so that
any number of processes can read any picture; the same bytes whatever folder or archive they came from.
"""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from atelier.errors import AtelierError, InputError
from atelier.files import digest, read_limited
from atelier.progress import watch

if TYPE_CHECKING:  # at run time where it is needed: a worker that decodes pictures starts a third of a second earlier
    from atelier.config.records import LeftOut

PACK, FILES, LEFT_OUT, SUMS = "pictures.zip", "files.csv", "left-out.csv", "SHA256SUMS"
BLOCK_BYTES = 1 << 20
SUMS_BYTES = 1 << 16
KEEPS_ORDER_BYTES = 256 << 20  # of a pack; smaller ones are the same bytes whenever their pictures came
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


@dataclass(frozen=True, slots=True)
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


def former_order(folder: Path) -> dict[str, int]:
    """The place of each file in a pack that is there already and large; empty if there is none, or a small one.

    What is prepared of pictures that were added to many then comes after what was prepared before, whatever they are
    called, and nothing of that changes.
    """
    try:
        if (folder / PACK).stat().st_size < KEEPS_ORDER_BYTES:
            return {}
        return {name: place for place, (name, _) in enumerate(_read_table(folder / FILES, PackedFile, folder.name))}
    except (OSError, AtelierError):  # the next pack is made as if it were the first
        return {}


def write_pack(
    folder: Path,
    entries: Sequence[Entry],
    left_out: Iterable[LeftOut],
    former: Mapping[str, int] = MappingProxyType({}),
) -> list[LeftOut]:
    """Write the pack of `entries` and its tables to `folder`; returns all that is left out.

    Args:
        folder: of the pack.
        entries: what it will hold, in natural order after those of `former`.
        left_out: by the source.
        former: the place of each file in the pack that is replaced.

    Raises:
        AtelierError: if a file cannot be read whole; the source is then not to be trusted with the others.
    """
    from atelier.config.records import LeftOut

    files, refused = list[PackedFile](), list(left_out)
    spellings = dict[str, str]()
    with zipfile.ZipFile(folder / PACK, "w", zipfile.ZIP_STORED) as pack:
        ordered = sorted(entries, key=lambda entry: (former.get(entry.name, len(former)), natural_order(entry.name)))
        for entry in watch(ordered, len(ordered), "pack", "file"):
            if reason := _refusal(entry, spellings.setdefault(entry.name.casefold(), entry.name)):
                refused.append(LeftOut(entry.name, reason, not is_table(entry.name)))
            else:
                files.append(_append(pack, entry))
    refused.sort(key=lambda item: natural_order(item.file))
    _write_table(folder / FILES, PackedFile, files)
    _write_table(folder / LEFT_OUT, LeftOut, refused)
    sums = "".join(f"{digest(folder / name)}  {name}\n" for name in (PACK, FILES, LEFT_OUT))  # as sha256sum writes it
    (folder / SUMS).write_text(sums)
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


@dataclass(frozen=True)
class Pack:
    """What is in a pack, and the sha256 of each of its files as ingest wrote them."""

    pictures: list[PackedFile]  # in natural order; of a large pack, those that were added to it after the others
    tables: list[PackedFile]
    left_out: list[LeftOut]
    sha256: dict[str, str]


def read_pack(folder: Path, dataset: str) -> Pack:
    """Read the tables of a pack, verified; `PackReader` verifies file by file what it reads.

    Raises:
        InputError: if there is none.
        AtelierError: if it is not as ingest wrote it.
    """
    from atelier.config.records import LeftOut

    sums = folder / SUMS
    if not sums.is_file():
        raise InputError(f"{sums}: missing; run 'atelier ingest {dataset}' first")
    lines = re.findall(r"([0-9a-f]{64})  (.+)\n", read_limited(sums, SUMS_BYTES).decode(errors="replace"))
    sha256 = {name: value for value, name in lines}
    for name in (PACK, FILES, LEFT_OUT):
        path = folder / name
        if not path.is_file() or name not in sha256 or (name != PACK and digest(path) != sha256[name]):
            raise AtelierError(
                f"{path}: missing or altered since ingest wrote it; run 'atelier ingest {dataset}' again"
            )
    files = [PackedFile(*row) for row in _read_table(folder / FILES, PackedFile, dataset)]
    rows = _read_table(folder / LEFT_OUT, LeftOut, dataset)
    left_out = [LeftOut(file, reason, is_picture == "True") for file, reason, is_picture in rows]
    pictures, tables = ([file for file in files if is_table(file.name) == kind] for kind in (False, True))
    return Pack(pictures, tables, left_out, sha256 | {SUMS: digest(sums)})


def _read_table(path: Path, row: type, dataset: str) -> list[list[str]]:
    """The rows that `_write_table` wrote; `AtelierError` if it did not."""
    names = [field.name for field in fields(row)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, strict=True)
        if header == names and all(len(values) == len(names) for values in rows):
            return rows
    except (ValueError, csv.Error):
        pass
    raise AtelierError(f"{path}: damaged, no table of {', '.join(names)}; run 'atelier ingest {dataset}' again")


class PackReader:
    """Reads files of a pack by their names."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PACK
        try:
            self.archive = zipfile.ZipFile(self.path)
        except Exception as error:  # BadZipFile, ValueError, struct.error and more
            raise self._altered(f"is no whole zip ({error})") from None

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
        raise self._altered(f"'{packed.name}' was altered since it was packed")

    def _altered(self, what: str) -> AtelierError:
        return AtelierError(f"{self.path}: {what}; run 'atelier ingest {self.path.parent.name}' again")

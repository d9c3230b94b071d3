"""The stage `ingest`: from the sources of a data set to verified files in `data/raw/DATASET/`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath

from atelier.config import Ingest, Params
from atelier.config.records import LeftOut
from atelier.data import pack
from atelier.data.sources import idx
from atelier.data.sources.archive import Entry, Limits, open_source
from atelier.data.sources.bring import bring
from atelier.data.sources.fashion_mnist import FASHION_MNIST
from atelier.data.sources.mnist import MNIST
from atelier.errors import AtelierError
from atelier.files import atomic_directory, digest

Say = Callable[[str], None]
ARRAYS: dict[str, idx.IdxSet] = {published.dataset: published for published in (MNIST, FASHION_MNIST)}
KAGGLE = {
    "pokemon": "kvpratama/pokemon-images-dataset",
    "pokemon-types": "vishalsubbiah/pokemon-images-and-types",
}
# Kaggle's set holds each picture twice, as PNG and as JPEG without transparency
PNG_TWINS = {"pokemon"}

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
PICTURE_LIMIT_BYTES = 64_000_000


def ingest(dataset: str, params: Params, root: Path, say: Say) -> Path:
    """Write the raw files of a data set; the same bytes whatever source they came from.

    Returns:
        The folder: one IDX file for each of `idx.NAMES`, or a pack of pictures (see `pack`).

    Raises:
        AtelierError: if no source yields them; what was there before stays.
    """
    params.dataset(dataset)
    target = root / "data" / "raw" / dataset
    # kept when ingest is interrupted: what was downloaded is not downloaded again
    staging = target.with_name(f".{dataset}.download")
    try:
        if dataset in ARRAYS:
            _ingest_arrays(ARRAYS[dataset], params.ingest, root, target, staging, say)
        else:
            _ingest_pictures(dataset, params.ingest, root, target, staging, say)
        shutil.rmtree(staging, ignore_errors=True)
    finally:
        if staging.is_dir() and not any(staging.iterdir()):
            staging.rmdir()
    return target


def _limits(settings: Ingest) -> Limits:
    return Limits(settings.limit_files, int(settings.limit_gigabytes * 1e9))


def _ingest_arrays(published: idx.IdxSet, settings: Ingest, root: Path, target: Path, staging: Path, say: Say) -> None:
    if all(
        (target / f"{name}.idx").is_file() and digest(target / f"{name}.idx", "md5") == file.md5
        for name, file in published.files.items()
    ):
        say(f"{target}: complete, every digest right")
        return
    folder = None
    if where := settings.paths.get(published.dataset):
        key = f"ingest.paths.{published.dataset}"
        folder = bring(where, key, root, staging, _limits(settings), settings.timeout_seconds)
    with ExitStack() as stack:
        if folder is not None and folder.is_file():
            folder = _unpack(folder, published, _limits(settings), _scratch(staging, stack))
        contents = idx.collect(published, folder, staging, settings.timeout_seconds, say)
    with atomic_directory(target) as partial:
        for name, content in contents.items():
            (partial / f"{name}.idx").write_bytes(content)


def _unpack(archive: Path, published: idx.IdxSet, limits: Limits, folder: Path) -> Path:
    """Copy the published files out of an archive, wherever in it they lie, to a folder below `folder`."""
    names = {name for file in published.files.values() for name in idx.possible_names(file)}
    members, unpacked = folder / "members", folder / "unpacked"
    members.mkdir()
    unpacked.mkdir()
    with open_source(archive, lambda name: PurePosixPath(name).name in names, limits, members) as (entries, _):
        for entry in entries:
            with entry.open() as source, (unpacked / PurePosixPath(entry.name).name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return unpacked


def _ingest_pictures(dataset: str, settings: Ingest, root: Path, target: Path, staging: Path, say: Say) -> None:
    key = f"ingest.paths.{dataset}"
    where = settings.paths.get(dataset) or f"kaggle://{KAGGLE[dataset]}"
    say(f"source: {where}")
    source = bring(where, key, root, staging, _limits(settings), settings.timeout_seconds)
    with ExitStack() as stack:
        members = _scratch(staging, stack)
        entries, left_out = stack.enter_context(open_source(source, _is_wanted, _limits(settings), members))
        if dataset in PNG_TWINS and (pngs := [entry for entry in entries if entry.name.lower().endswith(".png")]):
            entries = pngs
        if not any(_is_picture(entry.name) for entry in entries):
            raise AtelierError(f"{where}: holds no picture ({', '.join(PICTURE_SUFFIXES)}); check {key}")
        entries, left_out = _without_common_folder(
            entries, [item for item in left_out if not _is_bookkeeping(item.file)]
        )
        partial = stack.enter_context(atomic_directory(target))
        count = pack.write_pack(partial, entries, left_out, PICTURE_LIMIT_BYTES)
        refused = len(pack.read_left_out(partial, dataset))
    say(f"{count} files packed" + (f", {refused} left out, see {target / pack.LEFT_OUT}" if refused else ""))


def _scratch(staging: Path, stack: ExitStack) -> Path:
    """An empty folder until `stack` is left, on the disk that the data are on."""
    staging.mkdir(parents=True, exist_ok=True)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=staging)))


def _is_bookkeeping(name: str) -> bool:
    """Whether a file is a system's own: it comes and goes with the way a folder was packed."""
    path = PurePosixPath(name)
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini") or "__MACOSX" in path.parts


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not _is_bookkeeping(name)


def _is_wanted(name: str) -> bool:
    return _is_picture(name) or (name.lower().endswith(".csv") and not _is_bookkeeping(name))


def _without_common_folder(entries: list[Entry], left_out: list[LeftOut]) -> tuple[list[Entry], list[LeftOut]]:
    """Take the folders off that all files lie in: a folder and a zip of it name the same files."""
    common = os.path.commonpath(["/" + os.path.dirname(entry.name) for entry in entries]).lstrip("/")
    prefix = f"{common}/" if common else ""
    return (
        [replace(entry, name=entry.name.removeprefix(prefix)) for entry in entries],
        [replace(item, file=item.file.removeprefix(prefix)) for item in left_out],
    )

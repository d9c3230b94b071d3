"""The stage `ingest`: from the sources of a data set to verified files in `data/raw/DATASET/`."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from atelier.config import Params
from atelier.config.catalogue import PublishedArrays
from atelier.config.records import LeftOut
from atelier.data import pack
from atelier.data.sources import amat, open_source
from atelier.data.sources.archive import Request, is_archive
from atelier.data.sources.idx import fetch_arrays, possible_names, read_arrays
from atelier.errors import AtelierError, InputError, shown
from atelier.files import atomic_directory, digest, hold, remove_folder

Say = Callable[[str], None]
# What is a picture by its first bytes, whatever its name: PNG, JPEG, GIF, BMP, TIFF, WebP, AVIF, HEIF, JPEG XL,
# JPEG 2000, Photoshop. One that cannot be decoded is lost, which has to be said.
PICTURE_BYTES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{12}[\x0c-\x7c]\0\0\0|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP"
    rb"|.{4}ftyp(avi[fs]|hei[cfmsx]|hev[cmsx]|mi[fa][f1]|msf1)|\xff\x0a|\0\0\0\x0c(JXL|jP) |8BPS",
    re.DOTALL,
)
# what calls itself one, and may be broken
PICTURE_NAME = re.compile(
    r".\.(a?png|p?jpe?g|jpe|jfif|jif|bmp|dib|webp|gif|tiff?|avifs?|hei[cf]s?|hif|jxl|jp2|psd|svgz?|ico|tga|p[bgnp]m)$",
    re.IGNORECASE,
)
NAMED_IN_LINE = 3


def ingest(dataset: str, params: Params, root: Path, say: Say) -> Path:
    """Write the raw files of a data set; the same bytes whatever source they came from.

    Returns:
        The folder: an IDX file for each that is published as arrays, or a pack of pictures (see `pack`).

    Raises:
        InputError: if nothing says where they are, or nothing is there.
        AtelierError: if no source yields them, or another process ingests them; what was there before stays.
    """
    info, settings = params.dataset(dataset), params.ingest
    key, target = f"ingest.paths.{dataset}", root / "data" / "raw" / dataset
    where = settings.paths.get(dataset)
    # kept when ingest is interrupted: what was downloaded is not downloaded again
    staging = target.with_name(f".{dataset}.download")
    request = Request(key, staging, settings.limit_files, int(settings.limit_gigabytes * 1e9), settings.timeout_seconds)
    with hold(target):
        try:
            if info.arrays:
                _ingest_arrays(dataset, info.arrays, where, request, root, target, say)
            elif where is None and not info.kaggle:
                raise InputError(f"{key}: missing; add the folder or archive of its pictures")
            else:
                address = f"kaggle://{info.kaggle}" if where is None else where
                _ingest_pictures(address, info.png_twins, request, root, target, say)
            remove_folder(staging)
        finally:
            if staging.is_dir() and not any(staging.iterdir()):
                staging.rmdir()
    return target


def _ingest_arrays(
    dataset: str, published: PublishedArrays, where: str | None, request: Request, root: Path, target: Path, say: Say
) -> None:
    files = published.files
    paths = {name: target / f"{name}.idx" for name in files}
    if all(path.is_file() and digest(path, "md5") == files[name].md5 for name, path in paths.items()):
        say(f"{target}: complete, every digest right")
        return
    if where is None:
        contents = fetch_arrays(dataset, published, request.staging, request.timeout_seconds, say)
    else:
        names = possible_names(files)
        with open_source(where, request, root, lambda name, head: _judge_array(name, names)) as found:
            contents = read_arrays(found, files)
    with atomic_directory(target) as partial:
        for name, content in contents.items():
            (partial / f"{name}.idx").write_bytes(content)


def _ingest_pictures(where: str, png_twins: bool, request: Request, root: Path, target: Path, say: Say) -> None:
    say(f"source: {where}")
    with open_source(where, request, root, _judge_picture) as found:
        entries = list[pack.Entry]()
        for entry in found.entries.values():
            entries += amat.pictures(entry) if amat.is_binarised(entry.name) else [entry]
        if png_twins and (pngs := [entry for entry in entries if entry.name.lower().endswith(".png")]):
            entries = pngs
        if all(pack.is_table(entry.name) for entry in entries):
            raise AtelierError(f"{where}: holds no picture; check {request.key}{_summary(found.left_out)}")
        entries, left_out = _without_common_folder(entries, found.left_out)
        with atomic_directory(target) as partial:
            former = pack.former_order(target)
            left_out = pack.write_pack(partial, entries, left_out, former)
    if former and (new := sum(entry.name not in former for entry in entries)):
        say(f"{new} files come after the {len(former)} that were there before; remove {target} to order all by name")
    count = len(entries) + len(found.left_out) - len(left_out)
    say(f"{count} files packed{_summary(left_out)}" + (f"; see {target / pack.LEFT_OUT}" if left_out else ""))


def _summary(left_out: Iterable[LeftOut]) -> str:
    """What is left out, by the commonest reasons, and the first files of each."""
    files: dict[str, list[str]] = {}
    for item in left_out:
        files.setdefault(item.reason, []).append(shown(item.file))
    parts = []
    for reason, names in sorted(files.items(), key=lambda pair: -len(pair[1]))[:NAMED_IN_LINE]:
        named = ", ".join(names[:NAMED_IN_LINE]) + (", …" if len(names) > NAMED_IN_LINE else "")
        parts.append(f"{len(names)} {reason} ({named})")
    more = ["…"] if len(files) > NAMED_IN_LINE else []
    return f"; left out: {'; '.join(parts + more)}" if parts else ""


def _judge_array(name: str, names: Collection[str]) -> LeftOut | None:
    return None if PurePosixPath(name).name in names else LeftOut(name, "none of the files", is_picture=False)


def _judge_picture(name: str, head: bytes) -> LeftOut | None:
    if PICTURE_BYTES.match(head) or pack.is_table(name) or amat.is_binarised(name):
        return None
    if PICTURE_NAME.search(name):
        return LeftOut(name, "not a picture, by its first bytes" if head else "an empty file")
    return LeftOut(name, "an archive, not looked into" if is_archive(name) else "not a picture", is_picture=False)


def _without_common_folder(
    entries: list[pack.Entry], left_out: Iterable[LeftOut]
) -> tuple[list[pack.Entry], list[LeftOut]]:
    """Take the folders off that all files lie in: a folder and a zip of it name the same files."""
    common = os.path.commonpath(["/" + os.path.dirname(entry.name) for entry in entries]).lstrip("/")
    prefix = f"{common}/" if common else ""
    return (
        [replace(entry, name=entry.name.removeprefix(prefix)) for entry in entries],
        [replace(item, file=item.file.removeprefix(prefix)) for item in left_out],
    )

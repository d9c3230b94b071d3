"""A first look at pictures: what `prepare.sets` would have to say of them."""

from __future__ import annotations

import io
import statistics
import tempfile
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.config import Ingest
from atelier.config.records import LeftOut
from atelier.data.arrays import SPLITS
from atelier.data.images import formats
from atelier.data.ingest import PICTURE_BYTES
from atelier.data.pack import BLOCK_BYTES, blocks, natural_order
from atelier.data.sources import open_source
from atelier.data.sources.archive import Request
from atelier.errors import InputError

LOOKED_AT = 100  # pictures, spread over all
SIDES = (32, 64)  # pixels that every model of both kinds can be trained on without a GPU


def look(source: Path) -> dict[str, Any]:
    """The entry of `prepare.sets` that fits a folder or archive of pictures.

    Classes are the names of the folders that pictures lie in, if there are several and no picture lies in none; a
    split is that of the folders `train` and `test`, if all lie in these. Colour and size are those of some pictures.

    Raises:
        InputError: if it is neither folder nor archive, or holds no picture.
        AtelierError: if it is more than the limits of `ingest` allow, or cannot be read.
    """
    limits = Ingest()
    with tempfile.TemporaryDirectory() as staging:
        request = Request(
            "--dataset", Path(staging), limits.limit_files, int(limits.limit_gigabytes * 1e9), limits.timeout_seconds
        )
        with open_source(str(source.resolve()), request, Path(), _judge) as found:
            entries = [found.entries[name] for name in sorted(found.entries, key=natural_order)]
            some = [
                _figures(b"".join(blocks(entry, BLOCK_BYTES))) for entry in entries[:: len(entries) // LOOKED_AT + 1]
            ]
    if not (figures := [one for one in some if one is not None]):
        raise InputError(f"{source}: holds no picture that can be read; give a folder of pictures")
    settings: dict[str, Any] = {
        "side": max(
            (side for side in SIDES if side <= statistics.median(size for size, _ in figures)), default=SIDES[0]
        ),
        "channels": 1 if all(is_grey for _, is_grey in figures) else 3,
    }
    folders = [PurePosixPath(entry.name).parent.parts for entry in entries]
    while len({parts[:1] for parts in folders}) == 1 and folders[0]:
        folders = [parts[1:] for parts in folders]  # one that all lie in
    if {parts[:1] for parts in folders} == {(split,) for split in SPLITS}:
        settings["split"] = "folders"
        folders = [parts[1:] for parts in folders]
    classes = {parts[-1] if parts else "" for parts in folders}
    if len(classes) > 1 and "" not in classes:
        settings["classes"] = sorted(classes, key=natural_order)
    return settings


def _judge(name: str, head: bytes) -> LeftOut | None:
    return None if PICTURE_BYTES.match(head) else LeftOut(name, "not a picture", is_picture=False)


def _figures(data: bytes) -> tuple[int, bool] | None:
    """The shorter side of a picture and whether it is grey; None if it does not decode, which `prepare` will say."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats()) as image:
            side = min(image.size)
            image.draft("RGB", (SIDES[-1], SIDES[-1]))
            red, green, blue = (channel.tobytes() for channel in image.convert("RGB").split())
            return side, red == green == blue
    except Exception:  # decoders of hostile bytes raise OSError, SyntaxError, ValueError, struct.error and more
        return None

"""Turning arrays of images into PNG, GIF and NPZ files, and the pictures of a training back into arrays."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier.errors import AtelierError
from atelier.mark import DRAWN, Mark

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SHEET_ROWS = 8  # of a class, or of as many columns where there are none
SHEETS_LIMIT = 1001  # of a training: one before it, and as many as train.pictures may say
LARGEST_TILE = 128  # pixels, of an image in a WebP: larger ones are shown smaller
LOSSLESS_TILE = 32  # pixels; larger ones are compressed a little
SHEETS = "pictures.npz"  # of a model: what was drawn from fixed latents during its training


def sides(shape: Sequence[int]) -> str:
    """The shape of an image, (h, w, c), for people."""
    return "×".join(map(str, shape))


def tile(images: Images, columns: int, gap: int = 2, background: int = 255) -> Images:
    """Lay images (n, h, w, c) out in rows of `columns`; returns one image (height, width, c)."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), background, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def png_bytes(image: Images, mark: Mark | None = None, source: str = DRAWN) -> bytes:
    """PNG of one image (h, w, c) of 1 or 3 channels; what a model drew has a mark."""
    from PIL import Image, PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    if mark is not None:
        texts.add_itxt("XML:com.adobe.xmp", mark.xmp(source))
        texts.add_text("Software", "Atelier")
        texts.add_text("Description", mark.sentence)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()


def save_png(path: Path, image: Images, mark: Mark | None = None, source: str = DRAWN) -> None:
    """Write one image (h, w, c) as PNG."""
    path.write_bytes(png_bytes(image, mark, source))


def webp_bytes(images: Images, columns: int, lossless: bool = True, mark: Mark | None = None) -> bytes:
    """WebP of images (n, h, w, c) in rows of `columns`, without gaps; larger ones are compressed in any case.

    What a model drew has a mark.
    """
    from PIL import Image

    count, height, width, channels = images.shape
    tiled = tile(images, columns, gap=0, background=0)
    picture = Image.fromarray(tiled[..., 0] if channels == 1 else tiled)
    if (largest := max(height, width)) > LARGEST_TILE:
        across, down = (max(1, side * LARGEST_TILE // largest) for side in (width, height))
        picture = picture.resize((across * columns, down * -(-count // columns)), Image.Resampling.BOX)
    buffer, xmp = io.BytesIO(), b"" if mark is None else mark.xmp().encode()
    picture.save(buffer, format="WEBP", lossless=lossless and largest <= LOSSLESS_TILE, quality=85, method=4, xmp=xmp)
    return buffer.getvalue()


def npz_bytes(mark: Mark, **arrays: npt.NDArray[np.generic]) -> bytes:
    """NPZ of arrays that a model drew; the mark is its member `mark.xmp`.

    NumPy's own function asks for ZIP64, which Python 3.11.2 writes otherwise than 3.11.4: equal arrays, other bytes.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("mark.xmp"), mark.xmp())
    return buffer.getvalue()


def sheet_name(images_seen: int) -> str:
    """The file of a picture of training."""
    return f"{images_seen:09d}.png"


def save_sheet(path: Path, images: Images, columns: int, mark: Mark) -> None:
    """Write images (n, h, w, c) as a PNG, and beside it as NPY (rows, columns, h, w, c), which can be measured."""
    buffer = io.BytesIO()
    np.save(buffer, images.reshape(-1, columns, *images.shape[1:]))
    path.with_suffix(".npy").write_bytes(buffer.getvalue())
    save_png(path, tile(images, columns), mark)


def pack_sheets(folder: Path, target: Path, mark: Mark) -> None:
    """Put all sheets of a folder, whose file names say how many images had been seen, into one NPZ."""
    paths = sorted(folder.glob("*.npy"))
    sheets = np.stack([np.load(path) for path in paths])
    target.write_bytes(npz_bytes(mark, images_seen=np.array([int(path.stem) for path in paths]), sheets=sheets))


def load_sheets(path: Path, sheet: tuple[int, int, int, int, int], remedy: str) -> list[tuple[int, Images]]:
    """Read what `pack_sheets` wrote: images seen, and the sheet (rows, columns, h, w, c) that was drawn then.

    Args:
        path: of the file.
        sheet: the shape of each.
        remedy: what to do, for the message.

    Raises:
        AtelierError: if it is missing or damaged.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        with np.load(path) as file:
            # headers first: a file of any size may claim, and unpack to, more than fits in memory
            count, *more = _shape_of(file.zip, "images_seen.npy", np.int64)
            if more or not 0 < count <= SHEETS_LIMIT or _shape_of(file.zip, "sheets.npy", np.uint8) != (count, *sheet):
                raise ValueError
            seen, sheets = file["images_seen"], file["sheets"]
        if (np.diff(seen, prepend=-1) <= 0).any():
            raise ValueError
    except Exception:  # numpy, zipfile and zlib raise nearly anything of a damaged file
        raise AtelierError(f"{path}: missing or damaged; {remedy}") from None
    return list(zip(seen.tolist(), sheets, strict=True))


def _shape_of(archive: zipfile.ZipFile, name: str, dtype: type) -> tuple[int, ...]:
    """What the header of an array in an NPZ says; `ValueError` if it is of another type."""
    with archive.open(name) as file:
        np.lib.format.read_magic(file)
        shape, _, found = np.lib.format.read_array_header_1_0(file)
        length = archive.getinfo(name).file_size - file.tell()
    if found != dtype or length != math.prod(shape) * found.itemsize:
        raise ValueError(name)
    return shape


def save_gif(path: Path, frames: Sequence[Images], frame_milliseconds: int, mark: Mark) -> None:
    """Write images (h, w, c) as an endless GIF that rests on its last frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    durations = [frame_milliseconds] * (len(pictures) - 1) + [2000]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        comment=mark.sentence,
    )
    content = buffer.getvalue()
    # before the 0x3B that ends the file; behind the packet lies a "magic trailer", by which readers of GIF's blocks of
    # up to 255 bytes, whose lengths it takes the text for, come out at its end (XMP Specification Part 3, "GIF")
    trailer = bytes([1, *range(255, -1, -1), 0])
    path.write_bytes(content[:-1] + b"\x21\xff\x0bXMP DataXMP" + mark.xmp().encode() + trailer + content[-1:])

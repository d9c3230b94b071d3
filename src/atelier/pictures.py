"""Turning arrays of images into PNG and GIF files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


def tile(images: Images, columns: int, gap: int = 2, background: int = 255) -> Images:
    """Lay images (n, h, w, c) out in rows of `columns`; returns one image (height, width, c)."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), background, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def untile(sheet: Images, side: int, gap: int = 2) -> Images:
    """The square images (n, side, side, c) that `tile` laid out, row by row."""
    rows, columns = ((length - gap) // (side + gap) for length in sheet.shape[:2])
    corners = [
        (gap + row * (side + gap), gap + column * (side + gap)) for row in range(rows) for column in range(columns)
    ]
    return np.stack([sheet[top : top + side, left : left + side] for top, left in corners])


def png_bytes(image: Images) -> bytes:
    """PNG of one image (h, w, c) of 1 or 3 channels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path, image: Images) -> None:
    """Write one image (h, w, c) as PNG."""
    path.write_bytes(png_bytes(image))


def load_png(path: Path) -> Images:
    """Read a PNG as (h, w, c)."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as file:
        array = np.asarray(file)
    return array[..., None] if array.ndim == 2 else array


def save_gif(path: Path, frames: Sequence[Images], frame_milliseconds: int) -> None:
    """Write images (h, w, c) as an endless GIF that rests on its last frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    durations = [frame_milliseconds] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)

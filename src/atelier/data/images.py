"""From the bytes of one picture to a square uint8 image. A picture that is wrong is a `BadPicture`, never a crash."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atelier.pictures import Images

if TYPE_CHECKING:
    from PIL.Image import Image

    from atelier.config.catalogue import Fit

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
SMALLEST_SIDE = 8


class BadPicture(Exception):
    """A picture that is left out; the message is the reason, in one line."""


@dataclass(frozen=True)
class Form:
    """What every image of a data set is brought to."""

    side: int
    channels: int
    fit: Fit
    background: str  # #rrggbb
    limit_megapixels: float


def render(data: bytes, form: Form) -> Images:
    """Decode a picture, upright, its first frame, over the background; square it; resize it antialiased.

    Returns:
        uint8 (side, side, channels).

    Raises:
        BadPicture: if it is none, or too large to be decoded safely, or too small to show anything.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # what Pillow has to say of metadata is no concern here; decompression bombs are refused below
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, form.limit_megapixels)
            return square(_flatten(image, form), form)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"not a picture in {', '.join(FORMATS)}") from None
    except Exception as error:
        # decoders of hostile bytes raise OSError, SyntaxError, ValueError, struct.error, IndexError and more
        raise BadPicture(f"does not decode: {' '.join(str(error).split())[:120] or type(error).__name__}") from None


def _check_size(width: int, height: int, limit_megapixels: float) -> None:
    if width * height > limit_megapixels * 1e6:
        raise BadPicture(f"{width}×{height} pixels, more than prepare.limit_megapixels")
    if min(width, height) < SMALLEST_SIDE:
        raise BadPicture(f"{width}×{height} pixels, at least {SMALLEST_SIDE} a side are needed")


def _flatten(image: Image, form: Form) -> Image:
    """Upright and in L or RGB, transparent pixels showing the background."""
    from PIL import ExifTags, Image, ImageOps

    mode = "L" if form.channels == 1 else "RGB"
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, form.background)
        canvas.paste(image, mask=image)
        image = canvas
    return image if image.mode == mode else image.convert(mode)


def square(image: Image, form: Form) -> Images:
    """Cut the middle out (`crop`) or add bars of background (`pad`); uint8 (side, side, channels)."""
    from PIL import Image

    width, height = image.size
    if form.fit == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        box, size = (left, top, left + edge, top + edge), (form.side, form.side)
    else:
        scale = form.side / max(width, height)
        box, size = (0, 0, width, height), (max(round(width * scale), 1), max(round(height * scale), 1))
    if (box, size) != ((0, 0, width, height), image.size):
        # a much larger picture is averaged over whole pixels first, as Pillow's own thumbnails are: twice as fast, and
        # of 255 levels no pixel of a photograph is more than two away from resizing at once
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    if size != (form.side, form.side):
        canvas = Image.new(image.mode, (form.side, form.side), form.background)
        canvas.paste(image, ((form.side - size[0]) // 2, (form.side - size[1]) // 2))
        image = canvas
    array = np.asarray(image)
    return array.reshape(form.side, form.side, form.channels)


def resize_all(images: Images, form: Form) -> Images:
    """`square` of images (n, h, w, 1 or 3) that are decoded already; the same array if they have the form."""
    from PIL import Image

    if images.shape[1:] == (form.side, form.side, form.channels):
        return images
    pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
    mode = "L" if form.channels == 1 else "RGB"
    return np.stack([square(picture.convert(mode), form) for picture in pictures])

"""From the bytes of a picture to a square uint8 image, on every processor; what is wrong is a `BadPicture`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import multiprocessing
import signal
import struct
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from atelier.data.pack import PackedFile, PackReader
from atelier.errors import AtelierError
from atelier.pictures import Images
from atelier.processes import processors

if TYPE_CHECKING:
    from PIL.Image import Image

    from atelier.config.catalogue import Fit

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
SMALLEST_SIDE = 8
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # not JFIF's header and Adobe's, which tell what the colours are
START_OF_SCAN = 0xDA
PIECE_BYTES = 1 << 20
PIECE_PICTURES = 64
FEW_PICTURES = 200  # not worth starting processes for


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
    try:
        return _render(data, form)
    except BadPicture as reason:
        if (pixels := _without_metadata(data)) == data:
            raise
        try:
            return _render(pixels, form)  # what Pillow cannot make of text, profiles and dates is no concern here
        except BadPicture:
            raise reason from None


def _render(data: bytes, form: Form) -> Images:
    from PIL import Image, UnidentifiedImageError

    try:
        # decompression bombs are refused below
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats()) as image:
            _check_size(*image.size, form.limit_megapixels)
            return square(_flatten(image, data, form), form)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"not a picture in {', '.join(formats())}") from None
    except Exception as error:
        # decoders of hostile bytes raise OSError, SyntaxError, ValueError, struct.error, IndexError and more
        raise BadPicture(f"does not decode: {' '.join(str(error).split())[:120] or type(error).__name__}") from None


@functools.cache
def formats() -> tuple[str, ...]:
    """What is decoded: AVIF if this Pillow was built with it."""
    from PIL import features

    return (*FORMATS, "AVIF") if features.check("avif") else FORMATS


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG of the same pixels alone; anything else as it is."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kept, position = [data[:8]], 8
        while position + 12 <= len(data):
            length, kind = struct.unpack(">I4s", data[position : position + 8])
            if kind in PNG_PIXELS:
                kept.append(data[position : position + length + 12])
            position += length + 12
        return b"".join(kept)
    if data.startswith(b"\xff\xd8"):
        kept, position = [data[:2]], 2
        while data[position : position + 1] == b"\xff" and (marker := data[position + 1]) != START_OF_SCAN:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if marker not in JPEG_METADATA:
                kept.append(data[position:end])
            position = end
        return b"".join([*kept, data[position:]])
    return data


def _check_size(width: int, height: int, limit_megapixels: float) -> None:
    if width * height > limit_megapixels * 1e6:
        raise BadPicture(f"{width}×{height} pixels, more than prepare.limit_megapixels")
    if min(width, height) < SMALLEST_SIDE:
        raise BadPicture(f"{width}×{height} pixels, at least {SMALLEST_SIDE} a side are needed")


def _flatten(image: Image, data: bytes, form: Form) -> Image:
    """Upright and in L or RGB, transparent pixels showing the background."""
    from PIL import Image, ImageOps

    mode = "L" if form.channels == 1 else "RGB"
    image.load()
    with contextlib.suppress(Exception):  # of metadata that cannot be read
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F"):
        raise BadPicture("32 bits per value, which have no range of their own; save it with 8 or 16")
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        values = np.asarray(image)
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    elif image.format == "PNG" and clear is not None:
        image.info["transparency"] = _in_8_bits(clear, bits=data[24], mode=image.mode)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # a fourth byte that no program filled in
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, form.background)
        canvas.paste(image, mask=image)
        image = canvas
    return image if image.mode == mode else image.convert(mode)


def _in_8_bits(clear: Any, bits: int, mode: str) -> Any:
    """The transparent value of a PNG: Pillow scales the pixels of other depths than 8 and leaves this as it was."""
    if mode == "L" and isinstance(clear, int) and bits < 8:
        return clear * 255 // (2**bits - 1)
    if mode == "RGB" and bits == 16:
        return tuple(value >> 8 for value in clear)
    return clear


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


# --- on every processor -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """What became of consecutive pictures: the good ones, and for each its digest, or why it is left out."""

    images: Images  # (good ones, side, side, channels)
    outcomes: list[bytes | str]  # sha256 of the image's own bytes, or the reason


def render_all(folder: Path, files: Sequence[PackedFile], form: Form, workers: int | None) -> Iterator[Rendered]:
    """Decode the pictures of a pack on every processor, in constant memory; yields what became of them in order.

    Args:
        folder: of the pack.
        files: to decode.
        form: to bring them to.
        workers: how many processes; as many as `processors` says if None.

    Raises:
        AtelierError: if the pack was altered, or a worker died.
    """
    size = max(min(PIECE_PICTURES, PIECE_BYTES // (form.side**2 * form.channels)), 1)
    pieces = [files[start : start + size] for start in range(0, len(files), size)]
    workers = min(workers or processors(), len(pieces))
    if workers < 2 or len(files) < FEW_PICTURES:
        reader = PackReader(folder)
        yield from (_render_piece(reader, piece, form) for piece in pieces)
        return
    with _Workers(workers, folder, form) as pool:
        waiting = deque[Future[Rendered]]()
        for piece in pieces:
            if len(waiting) == 4 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(piece))
        while waiting:
            yield waiting.popleft().result()


class _Workers:
    """Processes that decode pictures, each at the other end of a pipe of its own.

    One that is killed closes its pipe, and so is noticed. A pool with a queue that all write to, such as that of
    concurrent.futures, waits for the rest of its message for ever.
    """

    def __init__(self, count: int, folder: Path, form: Form) -> None:
        self.folder = folder
        self.threads = ThreadPoolExecutor(count)
        self.idle = SimpleQueue[Connection]()
        self.processes = list[BaseProcess]()
        context = multiprocessing.get_context("spawn")  # not forked: whoever calls may have threads, of torch for one
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, folder, form), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.idle.put(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.join()

    def submit(self, files: Sequence[PackedFile]) -> Future[Rendered]:
        """Have a piece decoded by a worker that is idle."""
        return self.threads.submit(self._ask, files)

    def _ask(self, files: Sequence[PackedFile]) -> Rendered:
        connection = self.idle.get()
        try:
            connection.send(files)
            answer: Rendered | AtelierError = connection.recv()
        except (EOFError, OSError):
            raise AtelierError(
                f"{self.folder}: a process that decodes pictures died, out of memory perhaps; lower "
                "prepare.limit_megapixels"
            ) from None
        finally:
            self.idle.put(connection)
        if isinstance(answer, AtelierError):
            raise answer
        return answer


def _work(connection: Connection, folder: Path, form: Form) -> None:
    """Answer until the parent, or its end of the pipe, is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends its workers
    reader = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            files = connection.recv()
            try:
                reader = reader or PackReader(folder)
                connection.send(_render_piece(reader, files, form))
            except AtelierError as error:
                connection.send(error)


def _render_piece(reader: PackReader, files: Sequence[PackedFile], form: Form) -> Rendered:
    images, outcomes = list[Images](), list[bytes | str]()
    for file in files:
        try:
            image = render(reader.read(file), form)
        except BadPicture as reason:
            outcomes.append(str(reason))
        else:
            images.append(image)
            outcomes.append(hashlib.sha256(image.tobytes()).digest())
    shape = (form.side, form.side, form.channels)
    return Rendered(np.stack(images) if images else np.empty((0, *shape), np.uint8), outcomes)

"""Pictures as cameras and programs write them, against what a viewer shows."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from atelier.data.images import BadPicture, Form, render
from own_pictures import picture, picture_array

COLOUR, GREY = Form(32, 3, "crop", "#ffffff", 25), Form(32, 1, "crop", "#ffffff", 25)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, bits: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_chunk(extra: bytes, at: int = 33) -> bytes:
    """A sound PNG with a chunk after its header, or before its end."""
    data = picture(5)
    at = at if at > 0 else len(data) + at
    return data[:at] + extra + data[at:]


def with_segment(marker: int, data: bytes) -> bytes:
    """A sound JPEG with a segment after its beginning."""
    jpeg = picture(5, form="JPEG")
    return jpeg[:2] + bytes([255, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(chunk(b"eXIf", b"no header")),
        with_chunk(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"), at=-12),
        with_chunk(chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000)))),
        with_chunk(chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3_000_000))), at=-12),
        with_chunk(chunk(b"iTXt", b"prompt\0\1\0\0\0not zlib")),
        with_chunk(struct.pack(">I", 5) + b"gAMAabcde" + b"\0\0\0\0"),
        with_chunk(chunk(b"pHYs", b"")),
        with_chunk(chunk(b"tIME", b"")),
    ],
    ids=["exif", "exif-at-end", "profile", "text-at-end", "text", "checksum", "short", "date"],
)
def test_metadata_of_a_png_spoil_no_picture(data: bytes) -> None:
    assert (render(data, COLOUR) == picture_array(5)).all()


@pytest.mark.parametrize(
    "data",
    [
        with_segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        with_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\xff\xff\xff\x7f\xff\xff\xff\xff"),
        with_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\xff\xff\xff\xff\xff\xff\xff\xff"),
        with_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff"),
        with_segment(0xFE, b"\xff" * 60_000),
    ],
    ids=["exif", "exif-entry", "mpf", "photoshop", "comment"],
)
def test_metadata_of_a_jpeg_spoil_no_picture(data: bytes) -> None:
    assert (render(data, COLOUR) == render(picture(5, form="JPEG"), COLOUR)).all()


def test_pixels_that_are_damaged_are_not_helped() -> None:
    data = picture(5)
    with pytest.raises(BadPicture, match="does not decode"):
        render(data[:-40], COLOUR)
    position = data.index(b"IDAT") + 30
    with pytest.raises(BadPicture, match="does not decode"):
        render(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :], COLOUR)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("form", [COLOUR, GREY], ids=["colour", "grey"])
def test_the_transparent_value_of_a_grey_png_shows_the_background_and_nothing_else(bits: int, form: Form) -> None:
    highest = 2**bits - 1
    clear, other = (highest // 3 or 0), highest // 3 + 1
    values = np.full((32, 32), other)
    values[:16] = clear
    packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(32, 32, 2), axis=2)[..., 16 - bits :]
    rows = [np.packbits(row.reshape(-1)).tobytes() for row in packed]
    image = render(png(32, bits, 0, rows, chunk(b"tRNS", struct.pack(">H", clear))), form)
    assert (image[:16] == 255).all()
    assert (image[16:] == (other * 255 // highest if bits < 16 else other >> 8)).all()


def test_the_transparent_colour_of_a_png_of_16_bits() -> None:
    red, green = struct.pack(">HHH", 0xFFFF, 0, 0), struct.pack(">HHH", 0, 0x8000, 0)
    image = render(png(32, 16, 2, [red * 32] * 16 + [green * 32] * 16, chunk(b"tRNS", red)), COLOUR)
    assert (image[:16] == 255).all()
    assert (image[16:] == [0, 0x80, 0]).all()


def bmp(pixel: bytes, header: int, masks: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", header, 32, 32, 1, 32, 3 if masks else 0, 4096, 0, 0, 0, 0) + masks
    head += bytes(max(header - len(head), 0))
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 4096, 0, 0, 14 + len(head)) + head + pixel * 1024


MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize(("header", "masks"), [(40, b""), (56, MASKS), (108, MASKS), (124, MASKS)])
def test_the_fourth_byte_of_a_bmp_that_no_program_filled_in_hides_nothing(header: int, masks: bytes) -> None:
    assert (render(bmp(bytes([10, 200, 30, 0]), header, masks), COLOUR) == [30, 200, 10]).all()


def test_the_alpha_of_a_bmp_that_has_one_counts() -> None:
    data = bytearray(bmp(bytes([10, 200, 30, 0]), 108, MASKS))
    data[-1] = 255
    image = render(bytes(data), COLOUR)
    assert (image == 255).all(axis=-1).sum() == 1023


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "AVIF"])
def test_each_format_is_read(form: str) -> None:
    difference = np.abs(render(picture(7, form=form), COLOUR).astype(int) - picture_array(7))
    assert difference.mean() < 12


def tiff(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def test_a_tiff_keeps_16_bits_and_refuses_values_without_a_range() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    assert (render(tiff(ramp.astype(np.uint16)), GREY)[..., 0] == ramp.astype(np.uint16) >> 8).all()
    for dtype in (np.float32, np.int32):
        with pytest.raises(BadPicture, match="32 bits per value"):
            render(tiff(ramp.astype(dtype)), GREY)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "AVIF"])
@pytest.mark.parametrize("damage", ["cut", "noise", "zeros", "ends"])
def test_a_damaged_picture_is_a_picture_or_a_reason(form: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(zlib.crc32(f"{form}{damage}".encode()))
    whole = picture(3, 48, form)

    def spoil(data: bytearray) -> bytes:
        at = int(generator.integers(8, len(data)))
        if damage == "cut":
            return bytes(data[:at])
        width = int(generator.integers(1, 16))
        filling: dict[str, Callable[[], bytes]] = {
            "noise": lambda: generator.bytes(width),
            "zeros": lambda: bytes(width),
            "ends": lambda: b"\xff" * width,
        }
        data[at : at + width] = filling[damage]()
        return bytes(data)

    for _ in range(40):
        with contextlib.suppress(BadPicture):
            image = render(spoil(bytearray(whole)), COLOUR)
            assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert capfd.readouterr() == ("", "")

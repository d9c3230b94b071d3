"""Damage of every kind to the files that Atelier reads.

Each function is told a file and a `random.Random`, changes the file, and returns what it did in a few words.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import sqlite3
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

Damage = Callable[[Path, Random], str]
LARGE_BYTES = 3 << 30
RAW = "@raw@"  # stands for a value that `json.dumps` cannot write
DEEP = 100_000
MARKER = "marker"  # beside the workspace: made by whatever payload is run
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\n\x00red"
VALUES = (
    *("null", "true", "[]", "{}", '""', "0", "-1", "1.5", "-0", "-0.0", "[null]", '"x"', '"nan"', '"1"'),
    *("1e400", "-1e400", "1e308", "1e-400", "NaN", "Infinity", "-Infinity", "18446744073709551616", "9" * 300),
    *("9" * 5000, "9007199254740993", '"\\ud800"', '"\\u0000"', '"a\\nb"', '"\\u001b[31mred\\u0007"'),
    *('"../../outside/kept"', '"/etc/passwd"', '"<script>alert(1)</script>"', f'"{"long " * 500_000}"'),
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "1" * 100 + ".5", '"é\u202e\u2028"'),
)
YAML_VALUES = (
    *("~", ".nan", ".inf", "-.inf", "1e400", "*undefined", "&a [*a]", "2026-01-01", "0o17", "1_000", "!unknown x"),
    *("!!binary aGk=", "!!set {a, b}", "!!int x", "!!float []", "!!omap [a]", "{[a]: b}", "? x", "|\n  x", "@x", "`x`"),
    *(f'!!python/object/apply:os.system ["touch {MARKER}"]', "!!python/name:os.system", "!!timestamp x", "<<: x"),
)


class Payload:
    """Of a pickle: leaves a marker when it is run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def payload(path: Path) -> bytes:
    """A pickle that leaves the marker beside the workspace that a file lies in."""
    return pickle.dumps({"state": Payload(next(up for up in path.parents if up.name == "workspace").parent / MARKER)})


# --- what stands in the place of a file -------------------------------------------------------------------------


def nothing(path: Path, chance: Random) -> str:
    path.unlink()
    return "removed"


def folder(path: Path, chance: Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def pipe(path: Path, chance: Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def link(path: Path, chance: Random) -> str:
    target = chance.choice(["/dev/zero", "/dev/null", "/nowhere", path.name, "..", "/etc/passwd", "/dev/full"])
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target}"


def unreadable(path: Path, chance: Random) -> str:
    path.chmod(0)
    return "without permissions"


def large(path: Path, chance: Random) -> str:
    with path.open("r+b") as file:
        file.truncate(LARGE_BYTES)
    return f"grown to {LARGE_BYTES >> 30} GB"


PLACES: tuple[Damage, ...] = (nothing, folder, pipe, link, unreadable, large)

# --- bytes ------------------------------------------------------------------------------------------------------


def cut(path: Path, chance: Random) -> str:
    length = path.stat().st_size
    kept = chance.choice([0, 1, length // 2, length - 1, chance.randrange(length)])
    os.truncate(path, kept)
    return f"cut to {kept} of {length} bytes"


def flip(path: Path, chance: Random) -> str:
    data = bytearray(path.read_bytes())
    count = chance.choice([1, 1, 1, 8])
    for _ in range(count):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return f"{count} bits flipped"


def flip_head(path: Path, chance: Random) -> str:
    data = bytearray(path.read_bytes())
    at = chance.randrange(min(len(data), 128))
    data[at] = chance.choice([0, 0xFF, data[at] ^ 0x80, chance.randrange(256)])
    path.write_bytes(data)
    return f"byte {at} is {data[at]}"


def overwrite(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    start, length = chance.randrange(len(data)), chance.choice([4, 64, 4096])
    length = min(length, len(data) - start)
    new = chance.choice([bytes(length), chance.randbytes(length), b"\xff" * length])
    path.write_bytes(data[:start] + new + data[start + len(new) :])
    return f"{len(new)} bytes overwritten at {start}"


def insert(path: Path, chance: Random) -> str:
    data, what = path.read_bytes(), chance.choice([b"\0", b"\x1b[2J\x07", b"\xe9\xe8", b"\xff\xfe", b"\r\r\n", HTML])
    at = chance.choice([0, len(data), chance.randrange(len(data))])
    path.write_bytes(data[:at] + what + data[at:])
    return f"{what[:8]!r} put in at {at}"


def repeat(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data + data)
    return "its content twice"


def replace(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    new = {
        "random bytes": chance.randbytes(len(data) + 1),
        "zeros": bytes(len(data)),
        "HTML": HTML,
        "a pickle": payload(path),
        "a zip": b"PK\x05\x06" + bytes(18),
        "gzip": gzip.compress(data),
        "UTF-16": data.decode("latin-1").encode("utf-16"),
        "after a byte order mark": b"\xef\xbb\xbf" + data,
        "a line break": b"\n",
        "escape sequences": ESCAPES.encode() * 10,
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "a conflict of git": b"<<<<<<< HEAD\n" + data[:200] + b"\n=======\n" + data + b">>>>>>> branch\n",
    }
    what = chance.choice(list(new))
    path.write_bytes(new[what])
    return what


BYTES: tuple[Damage, ...] = (cut, cut, flip, flip, flip_head, overwrite, insert, repeat, replace, replace)

# --- JSON, lines of it, YAML ------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, one in entries for inner in places(one, (*path, key)))]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def changed(document: Any, chance: Random, values: tuple[str, ...] = VALUES) -> tuple[str, str]:
    """The text of a document with one thing wrong in it, and what that is."""
    path = chance.choice([place for place in places(document) if place] or [()])
    name, value = ".".join(map(str, path)), chance.choice(values)
    shown = value if len(value) < 30 else f"{value[:20]}… ({len(value)} characters)"
    parent, key = (at(document, path[:-1]), path[-1]) if path else ([document], 0)
    action = chance.choice(["value"] * 6 + ["missing", "renamed", "twice", "unknown", "swapped", "whole", "format"])
    if action == "missing":
        del parent[key]
        return json.dumps(document), f"{name} missing"
    if action == "renamed" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
        return json.dumps(document), f"{name} renamed"
    if action == "twice" and isinstance(parent, dict):
        parent[RAW] = parent[key]
        text = json.dumps(document).replace(f'"{RAW}": ', f"{json.dumps(key)}: {value}, {json.dumps(key)}: ", 1)
        return text, f"{name} also {shown}"
    if action == "unknown" and isinstance(parent, dict):
        parent["unknown"] = RAW
        return json.dumps(document).replace(f'"{RAW}"', value), f"{name} beside an unknown {shown}"
    if action == "swapped" and len(parent) > 1:
        other = chance.choice([k for k in (parent if isinstance(parent, dict) else range(len(parent))) if k != key])
        parent[key], parent[other] = parent[other], parent[key]
        return json.dumps(document), f"{name} and {other} swapped"
    if action == "whole":
        return value, f"all of it {shown}"
    if action == "format" and isinstance(document, dict) and "format" in document:
        name, path, parent, key = "format", ("format",), document, "format"
        value = shown = chance.choice(["2", "0", "-1", '"1"', "1.0", "true", "null"])
    if isinstance(parent, list) and not path:
        return value, f"all of it {shown}"
    parent[key] = RAW
    return json.dumps(document).replace(f'"{RAW}"', value), f"{name} {shown}"


def json_value(path: Path, chance: Random) -> str:
    text, what = changed(json.loads(path.read_bytes()), chance)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return what


def json_line(path: Path, chance: Random) -> str:
    lines = path.read_text().splitlines()
    number = chance.randrange(len(lines))
    action = chance.choice(["value"] * 4 + ["missing", "twice", "swapped", "blank", "joined"])
    what = action
    if action == "value":
        lines[number], what = changed(json.loads(lines[number]), chance)
    elif action == "missing":
        del lines[number]
    elif action == "twice":
        lines.insert(number, lines[number])
    elif action == "swapped":
        lines[number], lines[number - 1] = lines[number - 1], lines[number]
    elif action == "blank":
        lines[number] = ""
    else:
        lines[number] += lines[number - 1]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogatepass")
    return f"line {number + 1}: {what}"


def yaml_value(path: Path, chance: Random) -> str:
    from ruamel.yaml import YAML

    text, what = changed(YAML(typ="safe", pure=True).load(path.read_text()), chance, VALUES + YAML_VALUES)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return what


def yaml_bomb(path: Path, chance: Random) -> str:
    text = path.read_text()
    bombs = {
        "aliases of aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "merges of merges": "m0: &m0 {x: 1}\n"
        + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 8)),
        "nested brackets": "deep: " + "[" * DEEP + "\n",
        "nested mappings": "".join(" " * n + "a:\n" for n in range(1500)),
        "many keys": "".join(f"k{n}: {n}\n" for n in range(100_000)),
        "a long line": "long: " + "x" * (2 << 20) + "\n",
        "tabs": "\truns: 1\n",
        "two documents": "---\na: 1\n---\n",
        "a directive": "%YAML 9.9\n---\n",
        "a key twice": text.splitlines()[-1] + "\n",
    }
    what = chance.choice(list(bombs))
    parts = [text, bombs[what]] if chance.random() < 0.5 else [bombs[what], text]
    path.write_text("\n".join(parts))
    return what


JSON = (json_value,) * 14 + BYTES[1:] + PLACES
LINES = (json_line,) * 10 + BYTES[1:] + PLACES
YAML_FILE = (yaml_value,) * 10 + (yaml_bomb,) * 5 + BYTES[1:] + PLACES

# --- arrays, weights, checkpoints -------------------------------------------------------------------------------


def npy_header(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    array = np.load(io.BytesIO(data))
    length = struct.unpack("<H", data[8:10])[0]
    shape: tuple[int, ...] = array.shape
    header: dict[str, Any] = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    body, version = data[10 + length :], b"\x01\x00"
    what = chance.choice(["shape", "shape", "dtype", "fortran", "version", "missing", "pickle", "no dict", "length"])
    if what == "shape":
        header["shape"] = chance.choice(
            [(10**9, *shape[1:]), (-1, *shape[1:]), (), (2**62, 2**62), shape[:-1], (shape[0] - 1, *shape[1:]), "x"]
        )
        what = f"shape {header['shape']}"
    elif what == "dtype":
        header["descr"] = chance.choice(["|O", "<f8", "|S100000000", "<U999999999", "|V0", "x", "|b1", "<i8", "|i1"])
        what = f"dtype {header['descr']}"
    elif what == "fortran":
        header["fortran_order"] = chance.choice([True, "yes", None])
    elif what == "version":
        version = bytes([chance.randrange(2, 256), 0])
    elif what == "missing":
        del header[chance.choice(list(header))]
    elif what == "pickle":
        header, body = {"descr": "|O", "fortran_order": False, "shape": (1,)}, payload(path)
    text = (repr(header) if what != "no dict" else "__import__('os').system('touch marker')").encode()
    text = text.ljust(118) + b"\n"
    size = struct.pack("<H", len(text) if what != "length" else 65535)
    path.write_bytes(b"\x93NUMPY" + version + size + text + body)
    return f"its header: {what}"


def npz_member(path: Path, chance: Random) -> str:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice([name for name in members if name.endswith(".npy")])
    what = chance.choice(["header", "header", "missing", "bomb", "cut", "pickle", "renamed", "bytes", "claims"])
    if what == "header":
        inner = path.with_name(f"{path.name}.npy")
        inner.write_bytes(members[name])
        what = npy_header(inner, chance)
        members[name] = inner.read_bytes()
        inner.unlink()
    elif what == "missing":
        del members[name]
    elif what == "bomb":
        members[name] = members[name][:128].ljust(128) + bytes(400_000_000)
    elif what == "claims":
        buffer = io.BytesIO()
        shape = (50_000, 8, 2, 28, 28, 1)
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
        members[name] = buffer.getvalue() + bytes(600_000_000)
    elif what == "cut":
        members[name] = members[name][: chance.randrange(len(members[name]))]
    elif what == "pickle":
        members[name] = payload(path)
    elif what == "renamed":
        members[f"../{name}"] = members.pop(name)
    else:
        members[name] = chance.randbytes(len(members[name]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return f"{name}: {what}"


def tensors_header(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    if chance.random() < 0.3:
        claimed = chance.choice([0, 1, 2**63, 10**9, 99_999_999, length - 1, length + 8])
        path.write_bytes(struct.pack("<Q", claimed) + data[8:])
        return f"header of {claimed} bytes"
    text, what = changed(json.loads(data[8 : 8 + length]), chance)
    header = text.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return f"header: {what}"


def tensors_values(path: Path, chance: Random) -> str:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name, what = chance.choice(list(tensors)), chance.choice(["missing", "more", "shape", "dtype", "nan", "none"])
    if what == "missing":
        del tensors[name]
    elif what == "more":
        tensors["more"] = torch.zeros(3)
    elif what == "shape":
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    elif what == "dtype":
        tensors[name] = tensors[name].to(chance.choice([torch.int64, torch.bool, torch.float64, torch.complex64]))
    elif what == "nan":
        tensors[name] = torch.full_like(tensors[name].float(), float("nan"))
    else:
        tensors = {}
    save_file(tensors, path)
    return f"{name}: {what}"


def checkpoint_header(path: Path, chance: Random) -> str:
    header, _, content = path.read_bytes().partition(b"\n")
    new = chance.choice(
        [
            header.replace(b" 1 ", chance.choice([b" 2 ", b" 0 ", b" -1 ", b" 99999999999999999999 ", b" x ", b" "])),
            header[: chance.randrange(len(header))],
            header[:-64] + b"0" * 64,
            header + b" x",
            b"x" * 100_000,
            header + b"\r",
            header.replace(b" 1 ", " ² ".encode()),
        ]
    )
    path.write_bytes(new + b"\n" + content)
    return f"header {new[:40]!r}"


def checkpoint_content(path: Path, chance: Random) -> str:
    _, _, content = path.read_bytes().partition(b"\n")
    state = torch.load(io.BytesIO(content), weights_only=True)
    buffer = io.BytesIO()
    if chance.random() < 0.15:
        buffer.write(payload(path))
        what = "a pickle"
    elif chance.random() < 0.1:
        torch.save({"state": Payload(path.parents[3] / MARKER)}, buffer)
        what = "an archive of torch with a payload"
    else:
        where = chance.choice([place for place in places(state) if place])
        values: tuple[Any, ...] = (
            None,
            -1,
            0,
            10**6,
            10**30,
            1e400,
            float("nan"),
            "x",
            [],
            {},
            torch.zeros(2),
            "../../outside",
            True,
        )
        value = chance.choice(values)
        at(state, where[:-1])[where[-1]] = value
        torch.save(state, buffer)
        what = f"{'.'.join(map(str, where))} {str(value)[:30]}"
    path.write_bytes(b"\n" + buffer.getvalue())
    seal_checkpoint(path)
    return what


def seal_checkpoint(path: Path) -> None:
    """Make the digest of a checkpoint right."""
    import hashlib

    content = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(f"ATELIER-CHECKPOINT 1 {hashlib.sha256(content).hexdigest()}\n".encode() + content)


NPY = (npy_header,) * 10 + BYTES + PLACES
NPZ = (npz_member,) * 10 + BYTES + PLACES
TENSORS = (tensors_header,) * 6 + (tensors_values,) * 4 + BYTES + PLACES
CHECKPOINT = (checkpoint_header,) * 4 + (checkpoint_content,) * 10 + BYTES + PLACES

# --- pictures, archives, tables ---------------------------------------------------------------------------------


def picture_header(path: Path, chance: Random) -> str:
    """Sizes that claim gigabytes, bombs, and other files under a picture's name."""

    def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, chance.choice([0, 2, 3, 6]), 0, 0, 0)
        parts = [(b"IHDR", head), *chunks, (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )

    def many_frames() -> bytes:
        buffer = io.BytesIO()
        frames = [Image.new("L", (64, 64), shade % 256) for shade in range(300)]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        return buffer.getvalue()

    def saved(form: str, mode: str, size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, form)
        return buffer.getvalue()

    new: dict[str, Callable[[], bytes]] = {
        "PNG of 10^10 pixels": lambda: png(100_000, 100_000, (b"IDAT", zlib.compress(bytes(1000)))),
        "PNG of 2^62 pixels": lambda: png(2**31 - 1, 2**31 - 1, (b"IDAT", b"x")),
        "PNG of 0 pixels": lambda: png(0, 0, (b"IDAT", zlib.compress(b""))),
        "PNG of 81 megapixels": lambda: saved("PNG", "L", (9000, 9000)),
        "PNG without pixels": lambda: png(32, 32),
        "PNG with a text that unpacks to 200 MB": lambda: png(
            32, 32, (b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 1)), (b"IDAT", zlib.compress(bytes(5000)))
        ),
        "PNG whose pixels unpack to 200 MB": lambda: png(32, 32, (b"IDAT", zlib.compress(bytes(200_000_000), 1))),
        "BMP that claims 10^9 rows": lambda: (
            b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30, 10**9, 1, 24, *[0] * 6)
        ),
        "TIFF whose directory leads to itself": lambda: (
            b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHII", 1, 256, 4, 1, 64) + struct.pack("<I", 8)
        ),
        "GIF of 65,535 pixels a side": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(9),
        "GIF of 300 frames": many_frames,
        "a picture of 1 pixel": lambda: saved("PNG", "RGB", (1, 1)),
        "a picture of 20,000 × 1": lambda: saved("PNG", "RGB", (20_000, 1)),
        "a TIFF of 32 bits": lambda: saved("TIFF", "F", (40, 40)),
        "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>',
        "EPS": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(marker) (w) file closefile\n",
        "a pickle": lambda: payload(path),
        "HTML": lambda: HTML,
    }
    what = chance.choice(list(new))
    path.write_bytes(new[what]())
    return what


def zip_member(path: Path, chance: Random) -> str:
    def add(name: str, data: bytes, mode: int = 0) -> None:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)

    def edit(old: bytes, new: bytes) -> None:
        data = path.read_bytes()
        path.write_bytes(data.replace(old, new))

    picture = Path(zipfile.ZipFile(path).namelist()[0])
    directory = path.read_bytes().rfind(b"PK\x05\x06")
    actions: dict[str, Callable[[], object]] = {
        "a member ../../outside": lambda: add("../../outside/x.png", HTML),
        "a member by an absolute path": lambda: add("/etc/x.png", HTML),
        "a member C:\\x.png": lambda: add("C:\\x.png", HTML),
        "a link": lambda: add("x.png", b"/etc/passwd", stat.S_IFLNK | 0o777),
        "a device": lambda: add("x.png", b"", stat.S_IFCHR | 0o600),
        "a bomb of 300 MB": lambda: add("cat/bomb.png", bytes(300_000_000)),
        "a name twice": lambda: add(str(picture), HTML),
        "a name with escape sequences": lambda: add(f"cat/{ESCAPES}.png".replace("\0", ""), HTML),
        "a name of 60,000 letters": lambda: add("cat/" + "x" * 60_000 + ".png", HTML),
        "another zip in it": lambda: add("cat/inner.zip", path.read_bytes()),
        "an unknown compression": lambda: edit(b"PK\x01\x02", b"PK\x01\x02"[:3] + b"\x03"),
        "a directory elsewhere": lambda: path.write_bytes(
            path.read_bytes()[: directory + 16] + struct.pack("<I", chance.randrange(2**32)) + b"\0\0"
        ),
        "a count of 65,535": lambda: path.write_bytes(
            path.read_bytes()[: directory + 8] + b"\xff\xff\xff\xff" + path.read_bytes()[directory + 12 :]
        ),
        "encrypted": lambda: edit(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01"),
    }
    what = chance.choice(list(actions))
    actions[what]()
    return what


def tar_member(path: Path, chance: Random) -> str:
    def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: Any) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        for key, value in more.items():
            setattr(info, key, value)
        return info

    big = member("cat/x.png")
    big.pax_headers = {"comment": "x" * (20 << 20)}
    sizes = {"a size of 10^12": 10**12, "a size of 2 GB": 2 << 30}
    members = {
        "a member ../../outside": member("../../outside/x.png"),
        "a member by an absolute path": member("/etc/x.png"),
        "a link": member("x.png", tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a hard link": member("x.png", tarfile.LNKTYPE, linkname="../../../etc/passwd"),
        "a device": member("x.png", tarfile.CHRTYPE, devmajor=1, devminor=5),
        "a pipe": member("x.png", tarfile.FIFOTYPE),
        "attributes of 20 MB": big,
        "a name with escape sequences": member(f"cat/{ESCAPES}.png".replace("\0", "")),
        "an unknown kind": member("x.png", b"Z"),
        **{what: member("cat/x.png") for what in sizes},
    }
    what = chance.choice(list(members))
    data = path.read_bytes()
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    info = members[what]
    header = info.tobuf(tarfile.PAX_FORMAT) if what not in sizes else b""
    if what in sizes:
        info.size = sizes[what]
        header = info.tobuf(tarfile.GNU_FORMAT)
    plain = header + plain if chance.random() < 0.5 else plain.rstrip(b"\0").ljust(len(plain) // 512 * 512, b"\0")
    if not plain.startswith(header):
        plain = data_end(plain) + header + bytes(1024)
    path.write_bytes(gzip.compress(plain, 1) if data.startswith(b"\x1f\x8b") else plain)
    return what


def data_end(plain: bytes) -> bytes:
    """A tar without the zeros at its end."""
    length = len(plain.rstrip(b"\0"))
    return plain[: -(-length // 512) * 512]


def gzip_bomb(path: Path, chance: Random) -> str:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(150):
            file.write(bytes(1 << 20))
    return "150 MB of zeros, gzipped"


def table_row(path: Path, chance: Random) -> str:
    lines = path.read_text().splitlines()
    number = len(lines) - 1 - chance.randrange(max(len(lines) - 1, 1))  # a row, where there is one
    file, _, label = lines[number].partition(",")
    new = {
        "an unknown class": f"{file},horse",
        "no label": file,
        "no file": f",{label}",
        "a third column": f"{file},{label},{label}",
        "a quotation mark": f'"{file},{label}',
        "a path outside": f"../../../etc/passwd,{label}",
        "an absolute path": f"/etc/passwd,{label}",
        "another file": f"none.png,{label}",
        "a zero byte": f"{file}\0,{label}",
        "escape sequences": f"{ESCAPES[:20]},{label}".replace("\0", "").replace("\n", "").replace("\r", ""),
        "a field of 200,000 letters": f"{'x' * 200_000},{label}",
        "two labels": f"{file},{label}\n{file},{'dog' if label == 'cat' else 'cat'}",
        "a formula": f"=cmd|' /C calc'!A0,{label}",
    }
    what = chance.choice([*new, "no header", "another header", "semicolons", "the header twice"])
    if what in new:
        lines[number] = new[what]
    elif what == "no header":
        del lines[0]
    elif what == "another header":
        lines[0] = "name,kind"
    elif what == "semicolons":
        lines = [line.replace(",", ";") for line in lines]
    else:
        lines[0] = f"{lines[0]},{lines[0]}"
    path.write_text("\n".join(lines) + "\n")
    return what


PICTURE = (picture_header,) * 12 + BYTES + PLACES
ZIP = (zip_member,) * 12 + BYTES + PLACES
TAR = (tar_member,) * 12 + BYTES + PLACES
GZIPPED = (tar_member,) * 10 + (gzip_bomb,) * 2 + BYTES + PLACES
TABLE = (table_row,) * 14 + BYTES + PLACES
OTHER = BYTES + PLACES
# files that another library reads, which waits for a pipe
OTHERS = (*BYTES, nothing, folder, unreadable)
YAML_OF_OTHERS = (yaml_value,) * 10 + (yaml_bomb,) * 5 + OTHERS

# --- MLflow's database ------------------------------------------------------------------------------------------


def _sql(path: Path, *statement: Any) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(*statement)
    connection.close()


def tag_value(path: Path, chance: Random) -> str:
    """A tag of a version, or of the history, that says something else."""
    connection = sqlite3.connect(path)
    found = connection.execute(
        "select name, version, key, value from model_version_tags where key like 'atelier.%' order by 1, 2, 3"
    ).fetchall()
    connection.close()
    wanted = ("atelier.change", "atelier.config", "atelier.metrics", "atelier.package_sha256", "atelier.git_commit")
    preferred = [row for row in found if row[2] in wanted]
    name, version, key, value = chance.choice(preferred if chance.random() < 0.8 else found)
    try:
        new, what = changed(json.loads(value), chance)
    except ValueError:
        new, what = "", "empty"
    if chance.random() < 0.3 or not value.startswith("{"):
        values = ("", "x", ESCAPES, "9" * 5000, "../../outside", "--upload-pack=touch marker", "0" * 64, "HEAD", "[]")
        new = chance.choice(values)
        what = repr(new[:30])
    where = "where name = ? and version = ? and key = ?"
    new = new.encode("utf-8", "replace").decode()
    _sql(path, f"update model_version_tags set value = ? {where}", (new, name, version, key))
    return f"tag {key} of {name}/{version}: {what}"


def database_value(path: Path, chance: Random) -> str:
    """A column with a value that MLflow never wrote."""
    columns = (
        *(("model_versions", name) for name in ("source", "storage_location", "run_id", "description", "status")),
        *(("model_versions", name) for name in ("creation_time", "current_stage", "user_id")),
        *(("runs", name) for name in ("status", "artifact_uri", "start_time", "lifecycle_stage", "name")),
        *(("experiments", name) for name in ("artifact_location", "lifecycle_stage", "name")),
        *(("tags", "value"), ("params", "value"), ("registered_model_aliases", "version")),
        *(("logged_models", "artifact_location"), ("registered_models", "description"), ("tags", "key")),
    )
    table, column = chance.choice(columns)
    outside = next(up for up in path.parents if up.name == "workspace").parent / "outside"
    value = chance.choice(
        [
            *(None, "", "x", -1, 2**63 - 1, ESCAPES, "../../outside", f"file://{outside}", "file:///nowhere"),
            *("s3://nowhere/x", "http://127.0.0.1:9/x", "models:/gan/1", "runs:/0/x", "dbfs:/x", "FINISHED", 1e308),
            b"\xff\xfe",
        ]
    )
    with contextlib.suppress(sqlite3.Error):  # what the table itself refuses
        _sql(path, f"update {table} set {column} = ?", (value,))
    return f"{table}.{column}: {str(value)[:40]!r}"


def database_schema(path: Path, chance: Random) -> str:
    statement = chance.choice(
        [
            *(f"drop table {name}" for name in ("model_version_tags", "alembic_version", "experiments", "metrics")),
            *("update alembic_version set version_num = 'x'", "delete from alembic_version", "delete from experiments"),
            *("alter table model_versions rename column source to elsewhere", "drop table registered_model_aliases"),
            *("create view x as select 1", "delete from model_versions", "delete from runs", "pragma user_version = 9"),
        ]
    )
    _sql(path, statement)
    return statement


def database_beside(path: Path, chance: Random) -> str:
    suffix = chance.choice(["-journal", "-wal", "-shm"])
    path.with_name(path.name + suffix).write_bytes(chance.randbytes(4096))
    return f"a {suffix} of random bytes beside it"


DATABASE = (database_value,) * 8 + (database_schema,) * 5 + (database_beside,) * 2 + BYTES + PLACES
TAGS: tuple[Damage, ...] = (tag_value,)

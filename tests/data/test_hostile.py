"""Broken and hostile sources: each gives one line, or a listed omission, and harms nothing that was there before."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.files import folder_digest, read_json
from own_pictures import picture, write_params, write_pictures

MEMORY_LIMIT_BYTES = 1 << 30
HANG_SECONDS = 60
FLAT = "{side: 32, channels: 3, test_share: 0.3}"
BY_FOLDER = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog]}"
BY_TABLE = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog], labels: labels.csv}"
# runs the two stages in a fresh fork for each line of its input: no import is paid for twice, no memory shared
DRIVER = """
import json, os, signal, sys
import numpy, PIL.Image, PIL.ImageOps
import atelier.data.ingest, atelier.data.prepare
from atelier.cli import main
for plugin in ("Png", "Jpeg", "Bmp", "WebP", "Gif"):
    __import__(f"PIL.{plugin}ImagePlugin")
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(order["seconds"])
        os.dup2(os.open(order["stderr"], os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(2, 1)
        code = 0
        for stage in ("ingest", "prepare"):
            sys.argv = ["atelier", stage, "own", *order["arguments"]]
            code = code or main() or 0
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    answer = {"code": os.waitstatus_to_exitcode(status), "peak_kilobytes": usage.ru_maxrss}
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """How a source is made, and what has to be said of it: an error, an omission with its reason, or nothing."""

    name: str
    make: Callable[[Path], Path | None]  # told an empty folder; returns the source, the folder itself if None
    error: str = ""
    left_out: tuple[str, str] | None = None
    settings: str = FLAT
    overrides: tuple[str, ...] = ()
    exit_code: int = 1


# --- archives ---------------------------------------------------------------------------------------------------


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], good: int = 3) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "source.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(good):
                archive.writestr(f"{number}.png", picture(number))
            for name, data in members:
                archive.writestr(name, data)
        return path

    return make


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def edited(make: Callable[[Path], Path], edit: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(edit(path.read_bytes()))
        return path

    return made


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return edit


def deflated_with_broken_stream(folder: Path) -> Path:
    path = folder / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", picture(0, 64, "BMP"))
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    return path


def encrypted(folder: Path) -> Path:
    path = zipped()(folder)
    data = bytearray(path.read_bytes())
    for position in [m.start() for m in re.finditer(b"PK\x01\x02", bytes(data))]:
        data[position + 8] |= 1
    for position in [m.start() for m in re.finditer(b"PK\x03\x04", bytes(data))]:
        data[position + 6] |= 1
    path.write_bytes(data)
    return path


def unknown_compression(folder: Path) -> Path:
    path = zipped()(folder)
    data = bytearray(path.read_bytes())
    for position in [m.start() for m in re.finditer(b"PK\x01\x02", bytes(data))]:
        data[position + 10 : position + 12] = struct.pack("<H", 98)
    path.write_bytes(data)
    return path


def zip_bomb(folder: Path) -> Path:
    path = folder / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(50_000_000))
    return path


def tarred(*members: tarfile.TarInfo, mode: str = "w:gz", name: str = "source.tar.gz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for number in range(3):
                info = tarfile.TarInfo(f"{number}.png")
                data = picture(number)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            for member in members:
                archive.addfile(member, io.BytesIO(bytes(member.size)) if member.size else None)
        return path

    return make


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def tar_with_a_header_of_10_gigabytes(folder: Path) -> Path:
    """A PAX header says how long it is, and tarfile would read it whole."""
    info = tar_info("paxheader", tarfile.XHDTYPE)
    info.size = 10 * 10**9
    with gzip.open(folder / "source.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(20_000_000))
    return folder / "source.tar.gz"


def file_named(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


# --- folders ----------------------------------------------------------------------------------------------------


def good_and(name: str | bytes, data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_pictures(folder, classes=())
        Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name))).write_bytes(data)

    return make


def good_and_do(do: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_pictures(folder, classes=())
        do(folder)

    return make


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_claimed_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def png_with_text_bomb() -> bytes:
    data = picture(0)
    bomb = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(300_000_000), 9))
    return data[:33] + bomb + data[33:]


def wrong_checksum(data: bytes) -> bytes:
    position = data.index(b"IDAT") + 20
    return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]


def saved(form: str, side: int = 64) -> bytes:
    return picture(1000, side, form)


def sparse_giant(folder: Path) -> None:
    with (folder / "giant.png").open("wb") as file:
        file.write(picture(0))
        file.truncate(5_000_000_000)


def wide_photograph(folder: Path) -> None:
    Image.fromarray(np.zeros((5000, 6000), np.uint8)).save(folder / "wide.png")


def table(text: str | bytes, classes: tuple[str, ...] = ()) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_pictures(folder, classes=classes)
        (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)

    return make


ROWS = "".join(f"{number}.png,{'cat' if number % 2 else 'dog'}\n" for number in range(60))
UNTRUSTED = "refused, get the archive from a source you trust"

CASES = [
    # archive members that lead outside
    Case("zip-parent", zipped(("../evil.png", b"x")), rf"member '\.\./evil\.png' has a path with '\.\.'; {UNTRUSTED}"),
    Case("zip-hidden-parent", zipped(("a/../../evil.png", b"x")), r"has a path with '\.\.'"),
    Case("zip-absolute", zipped(("/evil.png", b"x")), r"member '/evil\.png' has an absolute path"),
    Case("zip-drive", zipped(("C:\\evil.png", b"x")), r"member 'C:/evil\.png' has an absolute path"),
    Case("zip-backslashes", zipped(("..\\evil.png", b"x")), r"has a path with '\.\.'"),
    Case(
        "zip-link", zipped((zip_info("l.png", stat.S_IFLNK | 0o777), b"/etc/passwd")), r"'l\.png' has a link or a dev"
    ),
    Case("zip-device", zipped((zip_info("d.png", stat.S_IFCHR | 0o666), b"")), r"'d\.png' has a link or a device"),
    Case("zip-line-break", zipped(("a\nb.png", picture(9)), good=60)),
    Case("zip-zero-byte", edited(zipped(("a?b.png", picture(9))), replaced(b"a?b", b"a\0b")), "a zero byte"),
    Case("tar-parent", tarred(tar_info("../evil.png", size=9)), r"member '\.\./evil\.png' has a path with '\.\.'"),
    Case("tar-absolute", tarred(tar_info("/evil.png", size=9)), r"member '/evil\.png' has an absolute path"),
    Case("tar-link", tarred(tar_info("l.png", tarfile.SYMTYPE, target="/etc/passwd")), r"'l\.png' has a link or a dev"),
    Case("tar-hard-link", tarred(tar_info("l.png", tarfile.LNKTYPE, target="0.png")), r"'l\.png' has a link or a dev"),
    Case("tar-device", tarred(tar_info("d.png", tarfile.CHRTYPE)), r"'d\.png' has a link or a device"),
    Case("tar-pipe", tarred(tar_info("p.png", tarfile.FIFOTYPE)), r"'p\.png' has a link or a device"),
    # archives that are broken
    Case("zip-cut", edited(zipped(), lambda data: data[: len(data) // 2]), r"source\.zip: not a whole zip archive"),
    Case("zip-text", file_named("source.zip", b"<html>log in</html>"), r"source\.zip: not a whole zip archive"),
    Case(
        "zip-checksum",
        edited(zipped(), replaced(picture(1)[60:80], bytes(20))),
        r"source\.zip: '1\.png' cannot be read",
    ),
    Case("zip-stream", deflated_with_broken_stream, r"source\.zip: 'a\.bmp' cannot be read"),
    Case("zip-encrypted", encrypted, r"'0\.png' is encrypted; give an archive without a password"),
    Case("zip-compression", unknown_compression, r"'0\.png' cannot be read \(That compression method"),
    Case("zip-in-zip", zipped(("inner.zip", b"PK"), good=0), "holds no picture"),
    Case("tar-cut", edited(tarred(), lambda data: data[: len(data) // 2]), r"source\.tar\.gz: '.\.png' cannot be read"),
    Case("tar-checksum", edited(tarred(), lambda data: data[:-8] + bytes(8)), r"source\.tar\.gz: not a whole tar"),
    Case("tar-noise", file_named("source.tar", bytes(range(256)) * 9), r"source\.tar: not a whole tar archive"),
    Case("archive-unknown", file_named("source.rar", b"Rar!"), "not an archive; give a folder, or one of", exit_code=2),
    # archives that are too much
    Case("zip-bomb", zip_bomb, r"unpacks to more than 0\.01 GB", overrides=("ingest.limit_gigabytes=0.01",)),
    Case("zip-files", zipped(good=30), "holds more than 20 files", overrides=("ingest.limit_files=20",)),
    Case(
        "tar-bomb",
        tarred(tar_info("b.png", size=50_000_000)),
        r"more than 0\.01 GB",
        overrides=("ingest.limit_gigabytes=0.01",),
    ),
    Case(
        "tar-bomb-unasked",
        tarred(tar_info("b.txt", size=50_000_000)),
        r"more than 0\.01 GB",
        overrides=("ingest.limit_gigabytes=0.01",),
    ),
    Case("tar-files", tarred(), "holds more than 2 files", overrides=("ingest.limit_files=2",)),
    Case("tar-header", tar_with_a_header_of_10_gigabytes, r"not a whole tar archive \(a header of"),
    # folders that are no set of pictures
    Case("folder-missing", lambda f: f / "nowhere", "no such folder or archive; give one that exists", exit_code=2),
    Case("folder-empty", lambda f: None, "holds no picture"),
    Case("folder-text", lambda f: (f / "a.txt").write_text("a") and None, "holds no picture"),
    Case("one-picture", lambda f: (f / "a.png").write_bytes(picture(0)) and None, "none of 1 pictures is for 'test'"),
    Case(
        "folder-files", lambda f: write_pictures(f) and None, "more than 9 files", overrides=("ingest.limit_files=9",)
    ),
    # files that are no pictures, or bad ones
    Case("pipe", good_and_do(lambda f: os.mkfifo(f / "p.png")), left_out=("p.png", "a device, pipe or socket")),
    Case("link", good_and_do(lambda f: (f / "l.png").symlink_to("/etc/passwd")), left_out=("l.png", "not a picture")),
    Case("link-in-circles", good_and_do(lambda f: (f / "loop").symlink_to(f)), left_out=("loop", "taken by")),
    Case(
        "bytes-for-a-name",
        good_and(b"\xff\xfe.png", picture(99)),
    ),
    Case("line-break-in-name", good_and("a\nb.png", picture(99))),
    Case(
        "upper-and-lower",
        good_and_do(lambda f: [(f / n).write_bytes(picture(98)) for n in ("x.PNG", "X.png")]),
        left_out=("x.PNG", "the name of 'X.png' but for upper and lower case"),
    ),
    Case(
        "name-twice",
        zipped(*[(f"{n}.png", picture(n)) for n in range(3, 60)], ("7.png", picture(8))),
        left_out=("7.png", "its name is twice in the source"),
    ),
    Case("nothing", good_and("x.png", b""), left_out=("x.png", "an empty file")),
    Case("giant", good_and_do(sparse_giant), left_out=("giant.png", "5000 MB, more than 64")),
    Case("not-a-picture", good_and("notes.txt", b"a"), left_out=("notes.txt", "not a picture")),
    Case("text", good_and("x.png", b"not a picture at all"), left_out=("x.png", "not a picture, by")),
    Case(
        "login-page",
        good_and("x.jpg", b"<!doctype html><title>Log in</title>"),
        left_out=("x.jpg", "not a picture"),
    ),
    Case("tiff", good_and("x.png", saved("TIFF"))),
    Case(
        "postscript",
        good_and("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        left_out=("x.png", "not a picture, by"),
    ),
    Case(
        "svg", good_and("x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), left_out=("x.png", "not a picture, by")
    ),
    Case("png-cut", good_and("x.png", saved("PNG")[:-200]), left_out=("x.png", "does not decode")),
    Case("png-header-only", good_and("x.png", saved("PNG")[:20]), left_out=("x.png", "")),
    Case("png-checksum", good_and("x.png", wrong_checksum(saved("PNG"))), left_out=("x.png", "does not decode")),
    Case("png-too-little", good_and("x.png", png_of_claimed_size(3000, 3000)), left_out=("x.png", "does not decode")),
    Case("png-bomb", good_and("x.png", png_of_claimed_size(60_000, 60_000)), left_out=("x.png", "")),
    Case("png-text-bomb", good_and("x.png", png_with_text_bomb())),
    Case(
        "many-pixels", good_and_do(wide_photograph), left_out=("wide.png", "6000×5000 pixels, more than prepare.limit")
    ),
    Case("few-pixels", good_and("x.png", picture(0, 4)), left_out=("x.png", "4×4 pixels, at least 8")),
    Case("jpeg-cut", good_and("x.jpg", saved("JPEG")[:-300]), left_out=("x.jpg", "does not decode")),
    Case("gif-cut", good_and("x.gif", saved("GIF")[:-500]), left_out=("x.gif", "does not decode")),
    Case("webp-cut", good_and("x.webp", saved("WEBP")[:-100]), left_out=("x.webp", "")),
    Case("bmp-cut", good_and("x.bmp", saved("BMP")[:-500]), left_out=("x.bmp", "does not decode")),
    Case(
        "mostly-bad",
        good_and_do(lambda f: [(f / f"x{n}.png").write_bytes(b"x") for n in range(9)]),
        r"9 of 69 pictures would be left out \(x0\.png: not a pict.*; …\); mend them, or raise prepare\.left_out_limit",
    ),
    # labels
    Case(
        "no-class",
        lambda f: write_pictures(f) and (f / "9.png").write_bytes(picture(99)) and None,
        left_out=("9.png", "in no folder with the name of a class"),
        settings=BY_FOLDER,
    ),
    Case(
        "class-without-picture",
        lambda f: write_pictures(f, classes=("cat", "bird")) and None,
        "30 of 60 pictures would be left out",
        settings=BY_FOLDER,
    ),
    Case(
        "class-empty",
        table("file,label\n" + ROWS.replace("dog", "cat")),
        "no picture of class 'dog' to train on",
        settings=BY_TABLE,
    ),
    Case(
        "table-missing",
        lambda f: write_pictures(f) and None,
        r"no file 'labels\.csv' among the pictures",
        settings=BY_TABLE,
    ),
    Case(
        "table-column",
        table("name,label\n" + ROWS),
        r"has no column 'file', only \['name', 'label'\]",
        settings=BY_TABLE,
    ),
    Case(
        "table-class",
        table("file,label\n" + ROWS.replace("9.png,cat", "9.png,bird", 1)),
        "'9.png' has label 'bird', no class; correct it, or add it to classes",
        settings=BY_TABLE,
    ),
    Case(
        "table-contradiction",
        table("file,label\n" + ROWS + "1.png,dog\n"),
        r"line 62 gives '1\.png' another label",
        settings=BY_TABLE,
    ),
    Case("table-cut", table("file,label\n" + ROWS + "60.png"), "line 62 lacks a file or a label", settings=BY_TABLE),
    Case("table-encoding", table(b"file,label\n\xff\xfe.png,cat\n"), r"labels\.csv: not UTF-8 text", settings=BY_TABLE),
    Case(
        "table-field",
        table("file,label\n" + "x" * 200_000 + ",cat\n"),
        r"labels\.csv: not a CSV file",
        settings=BY_TABLE,
    ),
    Case(
        "label-without-picture",
        table("file,label\n" + ROWS + "77.png,cat\n"),
        left_out=("labels.csv", "1 of its rows name no picture here, such as '77.png'"),
        settings=BY_TABLE,
    ),
    Case(
        "picture-without-label",
        table("file,label\n" + ROWS.replace("7.png,cat\n", "", 1)),
        left_out=("7.png", "not in labels.csv"),
        settings=BY_TABLE,
    ),
]


class Driver:
    """Ingests, then prepares, in a process of its own each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-W", "ignore", "-c", DRIVER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, root: Path, overrides: tuple[str, ...] = ()) -> tuple[int, list[str], int]:
        """Exit code (negative: the signal that ended it), what was said, peak memory in bytes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        arguments = ["--root", str(root), *(word for override in overrides for word in ("--set", override))]
        said = self.folder / "said"
        said.unlink(missing_ok=True)
        order = {"arguments": arguments, "stderr": str(said), "seconds": HANG_SECONDS}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], said.read_text(encoding="utf-8").splitlines(), answer["peak_kilobytes"] * 1024


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.process.communicate()


@pytest.fixture(scope="module")
def good_state(tmp_path_factory: pytest.TempPathFactory, driver: Driver) -> Path:
    """A workspace in which the data set `own` was ingested and prepared before, from good pictures."""
    root = tmp_path_factory.mktemp("good")
    source = write_pictures(tmp_path_factory.mktemp("source"))
    write_params(root, source, BY_FOLDER)
    assert driver.run(root)[0] == 0
    return root


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.processes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_source(case: Case, good_state: Path, driver: Driver, tmp_path: Path) -> None:
    root, folder = tmp_path / "workspace", tmp_path / "source"
    shutil.copytree(good_state, root)
    folder.mkdir()
    source = case.make(folder) or folder
    write_params(root, source, case.settings)
    outside, before = listing(tmp_path), folder_digest(root / "data")

    code, said, peak = driver.run(root, case.overrides)

    assert "Traceback" not in "".join(said), said
    assert peak < MEMORY_LIMIT_BYTES
    grown = {path for path in listing(tmp_path) - outside if not path.startswith("workspace/data/")}
    assert not grown
    assert not [path.name for path in (root / "data").rglob(".*")]
    if case.error:
        assert code == case.exit_code
        assert re.search(case.error, said[-1]), said
        assert said[-1].startswith("atelier: ")
        if "packed" in "".join(said):  # the pictures were taken, and could not be prepared
            shutil.rmtree(root / "data" / "raw")
            shutil.copytree(good_state / "data" / "raw", root / "data" / "raw")
        assert folder_digest(root / "data") == before
    else:
        assert code == 0, said
        left_out = {
            item["file"]: item["reason"] for item in read_json(root / "data/prepared/own/card.json")["left_out"]
        }
        file, reason = case.left_out or ("", "")
        assert list(left_out) == ([file] if file else [])
        assert reason in left_out.get(file, "")

"""What lies in folders and archives as other people's programs leave them: nothing lost, invented or refused."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.config.records import LeftOut
from atelier.data import pack
from atelier.data.ingest import ingest
from atelier.data.sources import archive
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from own_pictures import card_of, counts, picture, tar_of, write_params, write_pictures

FLAT = "{side: 32, channels: 3, test_share: 0.3}"
BY_FOLDER = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog]}"


def packed(root: Path, source: Path | str, settings: str = FLAT, say: Callable[[str], object] = str) -> list[str]:
    """The names in the pack made of a source."""
    root.mkdir(exist_ok=True)
    raw = ingest("own", load_params(write_params(root, source, settings)), root, say)
    return [file.name for file in pack.read_pack(raw, "own").pictures]


def left_out_of(root: Path) -> list[LeftOut]:
    return pack.read_pack(root / "data/raw/own", "own").left_out


def zip_of(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def as_source(folder: Path, kind: str) -> Path:
    if kind == "folder":
        return folder
    return zip_of(folder) if kind == "zip" else tar_of(folder, folder.with_suffix(f".{kind}"))


# --- names ------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "Schermafbeelding 2026-03-04 om 9.30.00\u202fa.m..png",
    "Capture d’écran\u00a0: 1.png",
    "写真\u3000夏/海.png",
    "👩\u200d🎨.png",
    "\u200bzero.png",
    "a\u2028b.png",
    "tab\there.png",
    "bell\x07.png",
    "rtl\u202etxt.png",
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_names_that_people_and_systems_give_are_taken(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "pets"
    for number, name in enumerate(ODD_NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (folder / "Icon\r").touch()
    assert sorted(packed(tmp_path / "root", as_source(folder, kind))) == sorted(ODD_NAMES)
    assert left_out_of(tmp_path / "root") == []


def test_bytes_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(picture(0))
    assert packed(tmp_path / "root", folder) == ["caf\\xe9.png"]
    tarred = tar_of(folder, tmp_path / "pets.tar")
    assert packed(tmp_path / "root", tarred) == ["caf\\xe9.png"]


def test_a_name_in_both_normal_forms_is_one_name(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        folder = write_pictures(tmp_path / form, classes=(unicodedata.normalize(form, "Zoë"), "dog"))
        settings = BY_FOLDER.replace("cat", unicodedata.normalize("NFD" if form == "NFC" else "NFC", "Zoë"))
        assert counts(card_of(tmp_path / f"{form}-root", folder, settings)) == [30, 30]
    digests = {folder_digest(tmp_path / f"{form}-root/data/raw") for form in ("NFC", "NFD")}
    assert len(digests) == 1


def as_written_by(names: dict[str, bytes], *, charset: str, extra: bool = False) -> bytes:
    """A zip of files by name, whose names are in a charset that it does not tell, or tells in Info-ZIP's field."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (name, data) in enumerate(names.items()):
            info = zipfile.ZipInfo(f"N{number:04}".ljust(len(name.encode(charset)), "x"))
            if extra:
                field = struct.pack("<BL", 1, zlib.crc32(name.encode(charset))) + name.encode()
                info.extra = struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(info, data)
    data = buffer.getvalue()
    for number, name in enumerate(names):
        raw = name.encode(charset)
        data = data.replace(f"N{number:04}".ljust(len(raw), "x").encode(), raw)
    return data


@pytest.mark.parametrize(
    ("charset", "extra"), [("utf-8", False), ("cp437", True), ("cp866", True), ("cp866", False), ("cp932", False)]
)
def test_the_names_in_a_zip_are_read_in_the_charset_they_were_written_in(
    tmp_path: Path, charset: str, extra: bool
) -> None:
    classes = {"cp437": ("Ñandú", "Grüße"), "cp932": ("ねこ", "いぬ")}.get(charset, ("Кошка", "Собака"))
    names = {f"{classes[number % 2]}/{number}.png": picture(number) for number in range(40)}
    archive = tmp_path / "pets.zip"
    archive.write_bytes(as_written_by(names, charset=charset, extra=extra))
    settings = BY_FOLDER.replace("cat, dog", ", ".join(classes))
    assert counts(card_of(tmp_path / "root", archive, settings)) == [20, 20]
    if charset == "utf-8" or extra:
        assert {file.name for file in pack.read_pack(tmp_path / "root/data/raw/own", "own").pictures} == names.keys()


# --- what is data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_what_systems_keep_for_themselves_is_not_data_and_is_said(tmp_path: Path, kind: str) -> None:
    folder = write_pictures(tmp_path / "pets", count=40)
    hidden = ["#recycle", "cat/.thumbs", "dog/@eaDir/1.png", "System Volume Information", "$Recycle.Bin/S-1", ".git/x"]
    for number, name in enumerate([*hidden, "__MACOSX/pets"]):
        (folder / name).mkdir(parents=True)
        (folder / name / "copy.png").write_bytes(picture(100 + number))
    (folder / "cat" / ".0.png").write_bytes(picture(200))
    for name in (".DS_Store", "Thumbs.db", "cat/._0.png", "desktop.ini"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    said: list[str] = []
    names = packed(tmp_path / "root", as_source(folder, kind), BY_FOLDER, said.append)
    assert len(names) == 40
    assert "40 files packed; left out: 7 hidden, or a system's own (" in said[-1]
    left_out = left_out_of(tmp_path / "root")
    assert {item.file for item in left_out} == {
        *("#recycle", "cat/.thumbs", "dog/@eaDir", "System Volume Information", "$Recycle.Bin", ".git", "cat/.0.png")
    }
    assert not any(item.is_picture for item in left_out)


def test_an_archive_among_the_pictures_is_said(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", classes=())
    (folder / "more.zip").write_bytes(b"PK\3\4")
    card = card_of(tmp_path / "root", folder, FLAT)
    assert card.left_out == [LeftOut("more.zip", "an archive, not looked into", is_picture=False)]


SUFFIXES = ["", ".jfif", ".JPE", ".dat", ".tif", ".avif", ".txt", ".png"]


def test_content_decides_what_a_picture_is(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    forms = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"]
    for number in range(56):
        (folder / f"{number}{SUFFIXES[number % 8]}").write_bytes(picture(number, form=forms[number % 7]))
    (folder / "readme").write_text("BM: Berliner Museen. II* MM* GIF RIFF")
    card = card_of(tmp_path / "root", folder, FLAT)
    assert counts(card) == [56]
    assert card.left_out == [LeftOut("readme", "not a picture", is_picture=False)]


def test_the_limit_counts_pictures_that_cannot_be_read_and_nothing_else(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", count=60, classes=())
    for number in range(30):
        (folder / f"{number}.txt").write_text("a caption")
    assert counts(card_of(tmp_path / "a", folder, FLAT)) == [60]
    heif = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    (folder / "IMG_1").write_bytes(heif)
    assert [item.file for item in card_of(tmp_path / "b", folder, FLAT).left_out if item.is_picture] == ["IMG_1"]
    (folder / "IMG_2.HEIC").write_bytes(heif)
    with pytest.raises(AtelierError, match=r"2 of 62 pictures would be left out \(IMG_1: not a picture in PNG, "):
        card_of(tmp_path / "c", folder, FLAT)


# --- links ------------------------------------------------------------------------------------------------------


def test_links_to_what_lies_elsewhere_are_followed(tmp_path: Path) -> None:
    store = write_pictures(tmp_path / "store", count=50, classes=())
    extra = write_pictures(tmp_path / "extra", count=20, classes=())
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    for number in range(50):
        (folder / f"{number}.png").symlink_to(store / f"{number}.png")
    (folder.parent / "dog").symlink_to(extra)
    (tmp_path / "here").symlink_to(folder.parent)
    assert counts(card_of(tmp_path / "root", tmp_path / "here", BY_FOLDER)) == [50, 20]


def test_links_within_and_around_a_folder_invent_nothing(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", count=40)
    outside = write_pictures(tmp_path / "outside", count=10, classes=())
    for name, target in {
        "latest": folder / "cat",
        "dog/copy.png": folder / "dog/1.png",
        "self": folder,
        "up": tmp_path,
        "more": outside,
        "more-again": outside,
    }.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    names = packed(tmp_path / "root", folder)
    assert len(names) == 50
    left_out = {item.file: item for item in left_out_of(tmp_path / "root")}
    assert left_out.keys() == {"latest", "dog/copy.png", "self", "up", "more/back", "more-again"}
    assert not any(item.is_picture for item in left_out.values())


def test_a_link_to_nothing_is_a_picture_lost(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", count=60, classes=())
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "notes.txt").symlink_to(tmp_path / "nowhere")
    packed(tmp_path / "root", folder)
    left_out = left_out_of(tmp_path / "root")
    assert {item.file: item.is_picture for item in left_out} == {"gone": True, "round.png": True, "notes.txt": False}


# --- archives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_tars_one_after_another_are_one(tmp_path: Path, compressed: bool) -> None:
    suffix = "tgz" if compressed else "tar"
    content = b""
    for start in (0, 20, 40):
        folder = tmp_path / f"shard-{start}"
        folder.mkdir()
        for number in range(start, start + 20):
            (folder / f"{number}.png").write_bytes(picture(number))
        content += tar_of(folder, tmp_path / f"{start}.{suffix}").read_bytes()
    (tmp_path / f"all.{suffix}").write_bytes(content)
    assert len(packed(tmp_path / "root", tmp_path / f"all.{suffix}")) == 60


def test_gzip_is_read_as_python_reads_it_and_its_padding_not_byte_by_byte() -> None:
    parts = [bytes(3 << 20), os.urandom(3 << 20), b"", b"end"]
    padded = bytes(4 << 20).join(gzip.compress(part) for part in parts) + bytes(1 << 20)
    reads = list[int]()

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size or 0)
            return super().read(size)

    unpacked = io.BufferedReader(archive._Gunzipped(Counted(padded)))
    assert b"".join(iter(lambda: unpacked.read(100_000), b"")) == gzip.decompress(padded) == b"".join(parts)
    assert len(reads) < 100
    whole = gzip.compress(parts[1])
    for damaged, error in (
        *((whole[:-at], EOFError) for at in (1, 8, 9, 1 << 20)),
        (whole[:-8] + bytes(8), zlib.error),
        (whole + b"more", zlib.error),
    ):
        with pytest.raises(error):
            io.BufferedReader(archive._Gunzipped(io.BytesIO(damaged))).read()


@pytest.mark.parametrize("number", [1, 5, -1])
def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path, number: int) -> None:
    source = tar_of(write_pictures(tmp_path / "pets", count=20, classes=()), tmp_path / "pets.tar")
    content = bytearray(source.read_bytes())
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    content[headers[number] + 150] ^= 1
    source.write_bytes(content)
    with pytest.raises(AtelierError, match=r"pets\.tar: not a whole tar archive \("):
        packed(tmp_path / "root", source)


def test_a_tar_that_ends_between_two_members_is_not_whole(tmp_path: Path) -> None:
    source = tar_of(write_pictures(tmp_path / "pets", count=20, classes=()), tmp_path / "pets.tar")
    content = source.read_bytes()
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    source.write_bytes(content[: headers[-2]])
    with pytest.raises(AtelierError, match="it ends without the mark of an end"):
        packed(tmp_path / "root", source)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_twice_is_lost_only_if_its_content_differs(tmp_path: Path, kind: str) -> None:
    members = [(f"{number}.png", picture(number)) for number in range(60)] + [("3.png", picture(3))]
    members += [("4.png", picture(400))]
    path = tmp_path / f"pets.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
    assert len(packed(tmp_path / "root", path)) == 60
    left_out = left_out_of(tmp_path / "root")
    assert [(item.file, item.is_picture) for item in left_out] == [("3.png", False), ("4.png", True)]


def test_what_an_archive_is_is_seen_from_its_content(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", classes=())
    for source, name in ((zip_of(folder), "a.bin"), (tar_of(folder, tmp_path / "pets.tgz"), "b.tar")):
        path = source.rename(tmp_path / name)
        assert len(packed(tmp_path / "root", path)) == 60


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_zip_without_its_beginning_is_blamed_itself(tmp_path: Path, share: float) -> None:
    source = zip_of(write_pictures(tmp_path / "pets", classes=()))
    content = source.read_bytes()
    source.write_bytes(content[int(len(content) * share) :])
    with pytest.raises(AtelierError, match=r"pets\.zip: not a whole zip archive"):
        packed(tmp_path / "root", source)


def test_zips_one_after_another_are_not_taken_for_the_last(tmp_path: Path) -> None:
    first, second = (zip_of(write_pictures(tmp_path / name, classes=())).read_bytes() for name in ("a", "b"))
    (tmp_path / "both.zip").write_bytes(first + second)
    with pytest.raises(AtelierError, match=r"both\.zip: not a whole zip archive \(it begins with another archive"):
        packed(tmp_path / "root", tmp_path / "both.zip")
    (tmp_path / "program.zip").write_bytes(b"MZ a program that unpacks itself" + second)
    assert len(packed(tmp_path / "root", tmp_path / "program.zip")) == 60


@pytest.mark.parametrize("where", ["", "  ", "~nobody-of-this-name/pets", "a\0b", "x" * 5000])
def test_what_is_no_path_is_one_line(tmp_path: Path, where: str) -> None:
    params = load_params(write_params(tmp_path, "here", FLAT))
    params.ingest.paths["own"] = where
    with pytest.raises((InputError, OSError)) as caught:
        ingest("own", params, tmp_path, str)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data/raw/own").exists()

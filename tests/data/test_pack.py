"""Packs and arrays that were damaged after they were made: one line, whatever the damage."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atelier.config import load_params
from atelier.data import pack
from atelier.data.arrays import open_split
from atelier.data.prepare import prepare
from atelier.errors import AtelierError
from atelier.files import digest, read_json, write_json
from own_pictures import make, write_pictures

BY_FOLDER = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog]}"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    make(root, write_pictures(tmp_path_factory.mktemp("pets")), BY_FOLDER)
    return root


@pytest.fixture
def made(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "root"))


def prepare_again(root: Path) -> None:
    prepare("own", load_params(root / "params.yaml"), root, workers=1)


def test_names_are_in_natural_order_however_long_their_numbers() -> None:
    names = ["a2", "a10", "a010", "A2", "a", "b1", "1" * 5000, "1" * 4999 + "2", "a02.png", "a2.png", "9"]
    expected = ["9", "1" * 5000, "1" * 4999 + "2", "a", "A2", "a2", "a010", "a10", "a02.png", "a2.png", "b1"]
    assert sorted(names, key=pack.natural_order) == sorted(expected, key=pack.natural_order)
    assert sorted(names, key=pack.natural_order).index("a2") < sorted(names, key=pack.natural_order).index("a10")
    assert sorted(["9", "1" * 5000, "1" * 4999 + "2"], key=pack.natural_order)[0] == "9"


def write_zip(path: Path, compression: int = zipfile.ZIP_DEFLATED, **changes: bytes) -> None:
    """The pack as another program writes it again."""
    with zipfile.ZipFile(path) as old:
        files = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in files.items():
            new.writestr(name, changes.get(name.replace("/", "_").replace(".", "_"), data))


def test_a_pack_is_read_by_name_whatever_wrote_it(made: Path) -> None:
    before = (made / "data/prepared/own/train-images.npy").read_bytes()
    write_zip(made / "data/raw/own/pictures.zip")
    prepare_again(made)
    assert (made / "data/prepared/own/train-images.npy").read_bytes() == before


def edited(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_bytes(edit((raw / name).read_bytes())) and None


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an older version": lambda raw: (raw / "SHA256SUMS").rename(raw / "pictures.zip.sha256"),
    "a table cut short": edited("files.csv", lambda data: data[: data.index(b"\n", 200) + 1]),
    "a row for nothing": edited("files.csv", lambda data: data + b'"x.png","00"\n'),
    "no table": lambda raw: (raw / "left-out.csv").unlink(),
    "a table of noise": edited("left-out.csv", lambda data: bytes(range(256))),
    "another digest": edited("SHA256SUMS", lambda data: data.replace(data[80:84], b"0123")),
    "no digests": edited("SHA256SUMS", lambda data: b""),
    "digests of noise": edited("SHA256SUMS", lambda data: b"\xff\xfe"),
    "a pack of nothing": edited("pictures.zip", lambda data: b""),
    "half a pack": edited("pictures.zip", lambda data: data[len(data) // 2 :]),
    "a pack cut short": edited("pictures.zip", lambda data: data[:-1000]),
    "another picture": lambda raw: write_zip(raw / "pictures.zip", cat_0_png=b"another"),
    "a bomb": lambda raw: write_zip(raw / "pictures.zip", cat_0_png=bytes(300_000_000)),
    "no pack": lambda raw: (raw / "pictures.zip").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pack_is_one_line_that_names_the_file(made: Path, damage: str) -> None:
    DAMAGE[damage](made / "data/raw/own")
    with pytest.raises(AtelierError, match=r"/data/raw/own/\S+: .*'atelier ingest own'") as caught:
        prepare_again(made)
    assert "\n" not in str(caught.value)


def test_any_byte_of_a_pack_may_be_damaged(made: Path) -> None:
    generator = np.random.default_rng(0)
    raw = made / "data/raw/own"
    for name in ("pictures.zip", "files.csv", "left-out.csv", "SHA256SUMS"):
        whole = (raw / name).read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            at = int(generator.integers(len(data)))
            data[at : at + 8] = generator.bytes(8)
            (raw / name).write_bytes(data)
            with pytest.raises(AtelierError):
                prepare_again(made)
        (raw / name).write_bytes(whole)


ARRAYS = [f"{split}-{what}.npy" for split in ("train", "test") for what in ("images", "labels")]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_is_one_line(made: Path, name: str) -> None:
    generator = np.random.default_rng(1)
    path = made / "data/prepared/own" / name
    whole, split = path.read_bytes(), name.partition("-")[0]
    damaged = [whole[:at] for at in (0, 5, 20, 100, 127, 128, len(whole) - 1)]
    damaged += [whole.replace(b"'|u1'", b"'|O1'").replace(b"'<i8'", b"'|O8'"), whole.replace(b"(", b"(" * 40, 1)]
    damaged += [whole[:70] + generator.bytes(8) + whole[78:] for _ in range(30)]
    damaged += [whole.replace(b"'|u1'", b"'|i1'").replace(b"'<i8'", b"'<f8'")]
    for data in damaged:
        path.write_bytes(data)
        with contextlib.suppress(AtelierError):
            open_split(made, "own", split)  # type: ignore[arg-type]
            assert len(data) == len(whole)


def test_labels_that_are_not_one_for_each_image(made: Path) -> None:
    path = made / "data/prepared/own/train-labels.npy"
    labels = np.load(path)
    for wrong in (labels[1:], -labels, np.zeros((len(labels), 1), np.int64), labels.astype(np.int32), labels + 100):
        np.save(path, wrong)
        sign(path)
        with pytest.raises(AtelierError, match=r"does not fit train-labels\.npy|train-labels\.npy: damaged"):
            open_split(made, "own", "train")


def test_images_of_another_size_than_the_card_says(made: Path) -> None:
    path = made / "data/prepared/own/train-images.npy"
    np.save(path, np.load(path)[:, 1:])
    sign(path)
    with pytest.raises(AtelierError, match=r"card\.json: does not fit train-images\.npy; run"):
        open_split(made, "own", "train")


@pytest.mark.parametrize("name", ARRAYS)
def test_a_bit_of_an_array_that_turned_is_not_trained_on(made: Path, name: str) -> None:
    path = made / "data/prepared/own" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AtelierError, match=rf"{name}: altered, .*; run 'atelier prepare own' again"):
        open_split(made, "own", name.partition("-")[0])  # type: ignore[arg-type]


def sign(path: Path) -> None:
    """Have the card say the digest of an array, as if it had been made like that."""
    card, (split, what) = read_json(path.parent / "card.json"), path.stem.split("-")
    card["splits"][split][f"{what}_sha256"] = digest(path)
    write_json(path.parent / "card.json", card)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xe9\xe8", b"file\n", b'"name","sha256"\n"a.png"\n', b'"name","sha256"\n"a.png', b'"name","sha256"\n"\0\n'],
)
def test_a_damaged_table_of_a_pack_is_one_line_even_with_its_digest(made: Path, content: bytes) -> None:
    raw = made / "data/raw/own"
    before = digest(raw / "files.csv")
    (raw / "files.csv").write_bytes(content)
    sums = raw / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, digest(raw / "files.csv")))
    with pytest.raises(AtelierError, match=r"files\.csv: damaged, no table of name, sha256; run 'atelier ingest own'"):
        prepare_again(made)

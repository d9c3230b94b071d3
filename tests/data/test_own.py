"""A user's own pictures: every layout, colour or grey, cropped or padded, split one way or another."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.config import load_params
from atelier.config.records import LeftOut
from atelier.data.arrays import check, encode_idx, open_split, read_card
from atelier.data.images import Form, render
from atelier.data.prepare import prepare
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest, read_json, write_json
from own_pictures import make, picture, tar_of, write_pictures

PROJECT = Path(__file__).parents[2]
FLAT = "{side: 32, channels: 3, test_share: 0.3}"
BY_FOLDER = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog]}"


def test_a_folder_and_archives_of_it_become_the_same_bytes(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets")
    (folder / ".DS_Store").write_bytes(b"a system's own")
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path, "pets"))
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/pets/cat/._0.png", b"a system's own")
    sources = [folder, archive, tar_of(folder, tmp_path / "pets.tar.gz")]
    digests = set()
    for number, source in enumerate(sources):
        make(tmp_path / str(number), source, BY_FOLDER)
        digests.add(folder_digest(tmp_path / str(number) / "data"))
    assert len(digests) == 1


def test_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pets", count=300)
    (source / "cat" / "bad.png").write_bytes(b"not a picture")
    digests = set()
    for workers in (1, 2, 3):
        make(tmp_path / str(workers), source, BY_FOLDER, workers)
        digests.add(folder_digest(tmp_path / str(workers) / "data" / "prepared"))
    assert len(digests) == 1


def test_class_folders_give_labels_and_no_classes_give_none(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pets")
    make(tmp_path / "labelled", source, BY_FOLDER)
    card = read_card(tmp_path / "labelled", "own")
    assert sum(sum(card.splits[split].by_class) for split in ("train", "test")) == 60
    labelled = open_split(tmp_path / "labelled", "own", "train")
    dogs = {render((source / f"dog/{n}.png").read_bytes(), FORM).tobytes() for n in range(1, 60, 2)}
    assert labelled.labels is not None
    for image, label in zip(labelled.images, labelled.labels, strict=True):
        assert (image.tobytes() in dogs) == (label == 1)
    make(tmp_path / "plain", source, FLAT)
    assert open_split(tmp_path / "plain", "own", "train").labels is None
    assert not list((tmp_path / "plain/data/prepared/own").glob("*labels*"))


@pytest.mark.parametrize("column", [lambda n: f"{n}.png", lambda n: str(n), lambda n: f"all/{n}.png"])
def test_a_table_names_pictures_by_path_name_or_stem(tmp_path: Path, column: object) -> None:
    source = tmp_path / "pets"
    write_pictures(source / "all", classes=())
    rows = "".join(f"{column(n)},{'dog' if n % 3 else 'cat'}\n" for n in range(60))  # type: ignore[operator]
    (source / "pets.csv").write_text("Name,Kind\n" + rows)
    settings = BY_FOLDER.replace("}", ", labels: pets.csv, file_column: Name, label_column: Kind}")
    make(tmp_path / "root", source, settings)
    card = read_card(tmp_path / "root", "own")
    assert np.sum([card.splits[split].by_class for split in ("train", "test")], axis=0).tolist() == [20, 40]


def test_first_pictures_in_natural_order_train_the_next_test(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pets", classes=())
    make(tmp_path / "root", source, FLAT.replace("test_share: 0.3", "split: first, train_images: 40, test_images: 15"))
    train, test = (open_split(tmp_path / "root", "own", split).images for split in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test), read_card(tmp_path / "root", "own").unused) == (40, 15, 5)
    for number, image in [*enumerate(train), *enumerate(test, start=40)]:
        assert image.tobytes() == render((source / f"{number}.png").read_bytes(), FORM).tobytes()


def test_folders_train_and_test_are_kept_and_no_test_picture_trains(tmp_path: Path) -> None:
    source = tmp_path / "pets"
    write_pictures(source / "train", count=50)
    write_pictures(source / "test", count=50)
    for path in (source / "test").rglob("*.png"):
        path.write_bytes(picture(1000 + int(path.stem)))
    shutil.copy(source / "train/cat/0.png", source / "test/cat/again.png")
    make(tmp_path / "root", source, BY_FOLDER.replace("test_share: 0.3", "split: folders"))
    card = read_card(tmp_path / "root", "own")
    assert card.left_out == [LeftOut("train/cat/0.png", "the same picture is in the other split")]
    assert (card.splits["train"].images, card.splits["test"].images) == (49, 51)


def test_by_share_a_picture_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    few, many = write_pictures(tmp_path / "few", count=40), write_pictures(tmp_path / "many", count=80)
    for name, source in (("a", few), ("b", many)):
        make(tmp_path / name, source, FLAT)
    before, after = ({i.tobytes() for i in open_split(tmp_path / name, "own", "test").images} for name in "ab")
    assert before
    assert before < after


FORM = Form(32, 3, "crop", "#ffffff", 25)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_crop_takes_the_middle_and_pad_keeps_all() -> None:
    image = Image.new("RGB", (96, 32), "#000000")
    image.paste("#ff0000", (32, 0, 64, 32))
    assert (render(png(image), FORM) == [255, 0, 0]).all()
    padded = render(png(image), Form(48, 3, "pad", "#00ff00", 25))
    assert (padded[:16] == [0, 255, 0]).all()
    assert (padded[32:] == [0, 255, 0]).all()
    assert (padded[20:28, 20:28] == [255, 0, 0]).all()
    assert (padded[20:28, :12] == 0).all()


def test_transparency_shows_the_background_not_what_lies_below() -> None:
    below = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    for form, expected in ((FORM, 255), (Form(32, 1, "crop", "#808080", 25), 128)):
        assert (render(png(below), form) == expected).all()
    palette = Image.new("P", (64, 64))
    palette.info["transparency"] = 0
    assert (render(png(palette), FORM) == 255).all()
    half = Image.new("LA", (64, 64), (0, 128))
    assert (render(png(half), Form(32, 1, "crop", "#ffffff", 25)) == 127).all()


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    small = render(png(Image.fromarray(stripes)), Form(64, 1, "crop", "#ffffff", 25))
    assert np.abs(small.astype(int) - 127).max() <= 16


def test_16_bits_a_pixel_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = render(png(Image.fromarray(ramp)), Form(64, 1, "crop", "#ffffff", 25))
    assert (image[..., 0] == ramp >> 8).all()


def test_photographs_are_turned_upright() -> None:
    image, buffer = Image.new("RGB", (64, 64), "#000000"), io.BytesIO()
    image.paste("#ffffff", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(buffer, "JPEG", exif=exif)
    upright = render(buffer.getvalue(), FORM)
    assert upright[:12].max() < 40
    assert upright[20:].min() > 215


def test_published_arrays_at_another_side(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "raw" / "mnist"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    for split in ("train", "test"):
        (folder / f"{split}-images.idx").write_bytes(encode_idx(images))
        (folder / f"{split}-labels.idx").write_bytes(encode_idx((np.arange(20) % 10).astype(np.uint8)))
    params = load_params(PROJECT / "params.yaml", ["prepare.sets.mnist={side: 64, channels: 3}"])
    prepare("mnist", params, tmp_path)
    test = np.asarray(open_split(tmp_path, "mnist", "test").images)
    assert test.shape == (20, 64, 64, 3)
    expected = Image.fromarray(images[7]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(test[7, ..., 1].astype(int) - np.asarray(expected)).max() <= 1


# --- checking -------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    make(tmp_path / "root", write_pictures(tmp_path / "pets"), BY_FOLDER)
    return tmp_path / "root"


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)


def test_check_finds_nothing_wrong_with_what_was_made(prepared: Path) -> None:
    found = check("own", prepared)
    assert (found.files, found.images, found.problems) == (9, 60, [])


@pytest.mark.parametrize(
    "file",
    [
        *("raw/own/pictures.zip", "raw/own/files.csv", "raw/own/left-out.csv", "raw/own/SHA256SUMS"),
        "prepared/own/contact-sheet.png",
        *(f"prepared/own/{split}-{what}.npy" for split in ("train", "test") for what in ("images", "labels")),
    ],
)
def test_check_names_each_altered_missing_or_foreign_file(prepared: Path, file: str) -> None:
    path = prepared / "data" / file
    flip_last_byte(path)
    assert check("own", prepared).problems == [f"{path}: altered, its sha256 is not the one on the card"]
    path.unlink()
    assert check("own", prepared).problems == [f"{path}: missing"]
    path.with_name("stranger").write_bytes(b"")
    path.with_name(".DS_Store").write_bytes(b"")
    strangers = [problem for problem in check("own", prepared).problems if problem.endswith("not on the card")]
    assert strangers == [f"{path.with_name('stranger')}: not on the card"]


def test_check_finds_a_card_that_contradicts_its_arrays(prepared: Path) -> None:
    card = read_json(prepared / "data/prepared/own/card.json")
    card["splits"]["train"]["by_class"][0] += 1
    card["channels"] = 1
    write_json(prepared / "data/prepared/own/card.json", card)
    assert len(check("own", prepared).problems) == 3


def test_check_without_a_card(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(InputError, match="run 'atelier prepare other' first"):
        check("other", prepared)
    (prepared / "data/prepared/own/card.json").write_text("{}")
    with pytest.raises(AtelierError, match="not the card of a data set: dataset: missing"):
        check("own", prepared)


def test_a_pack_that_was_altered_is_not_prepared(prepared: Path) -> None:
    path = prepared / "data/raw/own/pictures.zip"
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    problem = r"pictures\.zip: 'cat/0\.png' was altered since it was packed"
    with pytest.raises(AtelierError, match=problem):
        prepare("own", load_params(prepared / "params.yaml"), prepared)

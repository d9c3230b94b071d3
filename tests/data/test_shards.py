"""Sets in several files: read as one, gone on with after a stop, and little of them changed by pictures that come."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from atelier.config import Params, load_params
from atelier.data import pack, writer
from atelier.data.arrays import PreparedSplit, check, open_split, read_card, stored_images
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.data.stored import StoredImages
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from atelier.training.batches import TrainingImages
from own_pictures import write_params

SIDE = 28
BYTES = SIDE * SIDE  # of an image


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_FILE_BYTES", 10 * BYTES)
    monkeypatch.setattr(writer, "FILE_BYTES", 4 * BYTES)


def write_grey(folder: Path, names: list[str], seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    for name, pixels in zip(names, np.random.default_rng(seed).integers(0, 256, (len(names), SIDE, SIDE)), strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png", compress_level=0)
    return folder


def ingested(root: Path, names: list[str], settings: str = "{side: 28, channels: 1}") -> Params:
    root.mkdir()
    params = load_params(write_params(root, write_grey(root / "source", names, 0), settings))
    ingest("own", params, root, lambda message: None)
    return params


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures, prepared in files of 10 and 4."""
    root = tmp_path_factory.mktemp("shards") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "FIRST_FILE_BYTES", 10 * BYTES)
        patch.setattr(writer, "FILE_BYTES", 4 * BYTES)
        prepare("own", ingested(root, [str(number) for number in range(200)]), root, workers=1)
    return root


@pytest.fixture
def made(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "root"))


def test_images_in_several_files_are_read_as_one_array(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (99, 5, 6, 3), dtype=np.uint8)
    written = writer.SplitWriter(tmp_path, "train", (5, 6, 3), 0)
    for start in range(0, 99, 35):
        written.add(images[start : start + 35], ())
    card = written.close()
    assert [shard.images for shard in card.shards] == [87, 12]
    stored = stored_images([tmp_path / name for name in card.image_files("train")], "own")
    assert (stored.shape, stored.nbytes, len(stored)) == (images.shape, images.nbytes, 99)
    order, mask = generator.choice(99, 200), generator.random(99) < 0.3
    for wanted in (slice(None), slice(80, 95), slice(-3, None), order, mask, order[:0], [88, 87, 86], 90, -1):
        np.testing.assert_array_equal(stored[wanted], images[wanted])
    np.testing.assert_array_equal(np.stack(list(stored)), images)
    for beyond in (99, [0, 99], [-1]):
        with pytest.raises(IndexError):
            stored[beyond]


def test_the_card_names_each_file(made: Path) -> None:
    files = read_card(made, "own").splits["train"].image_files("train")
    assert len(files) > 8
    assert list(files)[:2] == ["train-images.npy", "train-images-0001.npy"]
    found = check("own", made)
    assert (found.problems, found.images) == ([], 200)
    shapes = [np.load(made / "data/prepared/own" / name).shape for name in files]
    assert {shape[1:] for shape in shapes} == {(SIDE, SIDE, 1)}
    assert {shape[0] for shape in shapes[1:-1]} == {4}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("cut", AtelierError, "altered, its sha256 is not the one on the card; run 'atelier prepare own' again"),
        ("missing", InputError, "missing; run 'atelier prepare own' first"),
        ("of another", AtelierError, "altered, its sha256 is not the one on the card; run 'atelier prepare own' again"),
    ],
)
def test_a_file_that_is_not_as_the_card_says_is_named(
    made: Path, damage: str, error: type[Exception], message: str
) -> None:
    path = made / "data/prepared/own/train-images-0003.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "missing":
        path.unlink()
    else:
        shutil.copy(path.with_name("train-images-0002.npy"), path)
    with pytest.raises(error) as told:
        open_split(made, "own", "train")
    assert str(told.value) == f"{path}: {message}"
    assert [problem.partition(":")[0] for problem in check("own", made).problems] == [str(path)]


@pytest.mark.parametrize("change", ["cut", "another"])
def test_a_file_that_is_changed_while_it_is_read_is_named(made: Path, change: str) -> None:
    images = open_split(made, "own", "train").images
    path = made / "data/prepared/own/train-images-0003.npy"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        other.rename(path)  # as `prepare` does
    with pytest.raises(AtelierError, match=r"train-images-0003\.npy: was changed while it was read; give the same com"):
        images[:]


def test_pictures_that_come_leave_all_files_but_the_last_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "KEEPS_ORDER_BYTES", 100_000)
    root, said = tmp_path / "root", list[str]()
    params = ingested(root, [f"{number}-of-before" for number in range(500)])
    prepare("own", params, root, workers=1)
    folder = root / "data/prepared/own"
    before = {path.name: path.read_bytes() for path in folder.glob("*-images*.npy")}
    write_grey(root / "source", [f"{number}-new" for number in range(100, 600, 100)], 1)
    ingest("own", params, root, said.append)
    assert said[1].startswith("5 files come after the 500 that were there before; remove ")
    prepare("own", params, root, workers=1)
    after = {path.name: path.read_bytes() for path in folder.glob("*-images*.npy")}
    changed = sum(len(data) for name, data in after.items() if before.get(name) != data)
    assert sum(split.images for split in read_card(root, "own").splits.values()) == 505
    assert changed <= 0.05 * sum(map(len, after.values()))
    before_that = (root / "data/raw/own/pictures.zip").read_bytes()
    ingest("own", params, root, lambda message: None)
    assert (root / "data/raw/own/pictures.zip").read_bytes() == before_that


@pytest.mark.parametrize("rest", [b"", b'{"outcomes": ["ab'])
def test_a_stopped_prepare_goes_on_with_the_file_it_was_at(tmp_path: Path, good: Path, rest: bytes) -> None:
    root = Path(shutil.copytree(good, tmp_path / "root"))
    params = load_params(root / "params.yaml")
    expected = folder_digest(root / "data/prepared/own")
    shutil.rmtree(root / "data/prepared/own")
    zipped = root / "data/raw/own/pictures.zip"
    whole = zipped.read_bytes()
    at = whole.index(b"150.png") + 200
    zipped.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(AtelierError, match=r"'150\.png' was altered since it was packed"):
        prepare("own", params, root, workers=1)
    unfinished = root / "data/prepared/.own.unfinished"
    full = {path.name: path.stat().st_mtime_ns for path in sorted(unfinished.glob("train*.npy"))[:3]}
    assert len(full) == 3
    with (unfinished / "progress.jsonl").open("ab") as log:
        log.write(rest)
    zipped.write_bytes(whole)
    prepare("own", params, root, workers=1)
    assert folder_digest(root / "data/prepared/own") == expected
    assert not unfinished.exists()
    assert {name: (root / "data/prepared/own" / name).stat().st_mtime_ns for name in full} == full


class Watched(StoredImages):
    """Notes which threads read."""

    readers: set[str]

    def read(self, places: npt.NDArray[np.int64], target: npt.NDArray[np.uint8]) -> None:
        self.readers.add(threading.current_thread().name)
        super().read(places, target)


def test_batches_are_read_ahead_by_other_threads_and_are_those_of_images_in_memory(made: Path) -> None:
    train = open_split(made, "own", "train")
    assert isinstance(train.images, StoredImages)
    watched = Watched(train.images.files, (SIDE, SIDE, 1))
    watched.readers = set()
    labels, cpu = np.arange(len(watched)), torch.device("cpu")
    of_disk = TrainingImages(PreparedSplit(watched, labels), True, 3, cpu, resident_bytes=0)
    resident = TrainingImages(PreparedSplit(watched[:], labels), True, 3, cpu, resident_bytes=1 << 30)
    watched.readers.clear()
    with of_disk.reading_ahead(16):
        for start in (*range(8, 400, 16), *range(40, 200, 16)):  # as the second of two ranks; and going on
            for found, expected in zip(of_disk.batch(start, 8), resident.batch(start, 8), strict=True):
                assert found is not None
                assert expected is not None
                assert torch.equal(found, expected)
    assert watched.readers
    assert all(name.startswith("read-ahead") for name in watched.readers)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]

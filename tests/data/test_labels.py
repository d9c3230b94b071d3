"""Labels by folders and by tables, however people lay them out and write them down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atelier.config.catalogue import DatasetInfo
from atelier.config.records import LeftOut
from atelier.data.labels import find_labels, split_by_folder
from atelier.data.pack import Pack, PackedFile
from atelier.errors import AtelierError
from own_pictures import card_of, counts, picture, write_pictures

BY_TABLE = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog], labels: pets.csv}"


def table(rows: dict[str, str], header: str = "file,label") -> str:
    return header + "\n" + "".join(f"{file},{label}\n" for file, label in rows.items())


def kind_of(number: int) -> str:
    return "dog" if number % 3 else "cat"


@pytest.mark.parametrize(
    ("path", "classes", "split", "label"),
    [
        ("train/bus/1.png", ("bus", "train"), "train", 0),
        ("train/train/1.png", ("bus", "train"), "train", 1),
        ("test/train/1.png", ("bus", "train"), "test", 1),
        ("test/test/1.png", ("test", "bus"), "test", 0),
        ("train/test/1.png", ("test", "bus"), "train", 0),
        ("bus/test/1.png", ("bus", "train"), "test", 0),
        ("train/test/1.png", ("bus", "train"), "test", 1),  # a folder a class, in it one a split
        ("x/train/y/bus/z/1.png", ("bus", "train"), "train", 0),
        ("train/test-drives/1.png", (), "train", 0),
        ("other/bus/1.png", ("bus", "train"), None, 0),
    ],
)
def test_a_class_may_be_called_as_a_split_is(
    path: str, classes: tuple[str, ...], split: str | None, label: int
) -> None:
    info = DatasetInfo("own", 32, 3, classes, split="folders")
    assert split_by_folder(path, info) == split
    assert find_labels(Path(), Pack([PackedFile(path, "")], [], [], {}), info)[0] == [label]


@pytest.mark.parametrize(
    "spelling",
    [
        lambda n: f"./all/{n}.png",
        lambda n: f"/home/someone/pets/all/{n}.png",
        lambda n: f"C:\\Users\\Someone\\pets\\all\\{n}.png",
        lambda n: f"..\\all\\{n}.png",
        lambda n: f"ALL/{n}.PNG",
        lambda n: f"all//{n}",
    ],
)
def test_a_path_in_a_table_is_read_as_it_was_meant(tmp_path: Path, spelling: Callable[[int], str]) -> None:
    folder = write_pictures(tmp_path / "pets" / "all", classes=()).parent
    (folder / "pets.csv").write_text(table({spelling(n): kind_of(n) for n in range(60)}))
    card = card_of(tmp_path / "root", folder, BY_TABLE)
    assert (counts(card), card.left_out) == ([20, 40], [])


def test_the_table_of_a_whole_set_beside_a_sample_of_it(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", classes=())
    rows = {f"{n}.png": kind_of(n) if n < 60 else "ferret" for n in range(5000)}
    (folder / "pets.csv").write_text(table(rows))
    card = card_of(tmp_path / "root", folder, BY_TABLE)
    assert counts(card) == [20, 40]
    reason = "4940 of its rows name no picture here, such as '60.png'"
    assert card.left_out == [LeftOut("pets.csv", reason, is_picture=False)]


def test_each_split_has_a_table_of_its_own(tmp_path: Path) -> None:
    for split, other in (("train", ("cat", "dog")), ("test", ("dog", "cat"))):
        folder = write_pictures(tmp_path / "pets" / split, count=20, classes=())
        for number in range(20):
            (folder / f"{number}.png").write_bytes(picture(number + 100 * (split == "test")))
        (folder / "pets.csv").write_text(table({f"{n}.png": other[n % 4 == 0] for n in range(20)}))
    card = card_of(tmp_path / "root", tmp_path / "pets", BY_TABLE.replace("test_share: 0.3", "split: folders"))
    assert card.splits["train"].by_class == [15, 5]
    assert card.splits["test"].by_class == [5, 15]


def test_tables_elsewhere_that_contradict_one_another_lose_the_picture(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets" / "images", count=60, classes=()).parent
    for name, label in (("a", "cat"), ("b", "dog")):
        (folder / name).mkdir()
        (folder / name / "pets.csv").write_text(table({f"{n}.png": kind_of(n) for n in range(1, 60)} | {"0": label}))
    card = card_of(tmp_path / "root", folder, BY_TABLE)
    assert card.left_out == [LeftOut("images/0.png", "given more than one label in pets.csv")]


@pytest.mark.parametrize("content", ["\n", "file\n", "file,label\n", "\0,\0\n", '"file,label\n'])
def test_a_table_of_nothing_is_one_line(tmp_path: Path, content: str) -> None:
    folder = write_pictures(tmp_path / "pets", classes=())
    (folder / "pets.csv").write_text(content)
    reason = "not in pets.csv" if content == "file,label\n" else r"pets\.csv: (has no column|not a CSV file)"
    with pytest.raises(AtelierError, match=reason):
        card_of(tmp_path / "root", folder, BY_TABLE)

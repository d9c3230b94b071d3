"""The label of each picture, from the folders it lies in or from a CSV among the pictures; the folder of its split."""

import csv
import functools
import io
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from atelier.config.catalogue import DatasetInfo
from atelier.config.records import LeftOut
from atelier.data.arrays import SPLITS, Split
from atelier.data.pack import Pack, PackedFile, PackReader
from atelier.errors import AtelierError

Label = int | str  # a class's index, or why the picture has none
Parts = tuple[str, ...]  # of a path, for comparison

# a zip that does not say its charset is read as cp437, from which the bytes of its names can be had back
CHARSETS = ("cp850", "cp1252", "cp866", "cp1251", "cp932", "gbk", "big5", "euc_kr")


def find_labels(folder: Path, pack: Pack, info: DatasetInfo) -> tuple[list[Label], list[LeftOut]]:
    """The label of each picture, 0 for all if the data set has no classes; and the tables with rows for others.

    Raises:
        AtelierError: if there is no such CSV, it cannot be read, or it gives a picture a class that does not exist.
    """
    if not info.class_names:
        return [0] * len(pack.pictures), []
    if info.labels == "folders":
        return [_label_by_folder(picture.name, info) for picture in pack.pictures], []
    found = [table for table in pack.tables if _comparable(PurePosixPath(table.name).name) == _comparable(info.labels)]
    if not found:
        raise AtelierError(f"{info.title}: no file '{info.labels}' among the pictures; add it, or correct 'labels'")
    reader = PackReader(folder)
    return _labels_by_tables(pack.pictures, [_Table(table, reader, info) for table in found], info)


def split_by_folder(name: str, info: DatasetInfo) -> Split | None:
    """The split of a picture by the folder `train` or `test` that it lies in; None if it is in neither."""
    folders = PurePosixPath(name).parent.parts
    position = _position_of_split(folders, info)
    return next((split for split in SPLITS if position is not None and split == folders[position]), None)


def _position_of_split(folders: Parts, info: DatasetInfo) -> int | None:
    """The outermost folder that has a split's name: if classes have such names too, one with a class beside it."""
    positions = [position for position, folder in enumerate(folders) if folder in SPLITS]
    if info.class_names and info.labels == "folders":
        beside = [i for i in positions if _class_by_folders(folders[:i] + folders[i + 1 :], info) is not None]
        positions = beside or positions
    return positions[0] if positions else None


def _label_by_folder(name: str, info: DatasetInfo) -> Label:
    folders = PurePosixPath(name).parent.parts
    if info.split == "folders" and (position := _position_of_split(folders, info)) is not None:
        folders = folders[:position] + folders[position + 1 :]
    label = _class_by_folders(folders, info)
    return "in no folder with the name of a class" if label is None else label


def _class_by_folders(folders: Parts, info: DatasetInfo) -> int | None:
    """The class that the innermost folder with the name of one names."""
    labels = (_class_by_name(folder, info.class_names) for folder in reversed(folders))
    return next((label for label in labels if label is not None), None)


@functools.cache
def _class_by_name(name: str, class_names: tuple[str, ...]) -> int | None:
    classes = [unicodedata.normalize("NFC", each) for each in class_names]
    spellings = [unicodedata.normalize("NFC", name)]
    for charset in CHARSETS:
        try:
            spellings.append(name.encode("cp437").decode(charset))
        except UnicodeError:
            continue
    return next((classes.index(spelling) for spelling in spellings if spelling in classes), None)


# --- tables -----------------------------------------------------------------------------------------------------


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()  # no two files of a pack differ in case alone


def _parts(path: str) -> Parts:
    """The folders and the name of a path, however it is written: with ./ or ../, with backslashes, or absolute."""
    parts = list[str]()
    for part in re.split(r"[/\\]", path.strip()):
        if part == "..":
            parts.clear()
        elif part not in ("", "."):
            parts.append(_comparable(part))
    return tuple(parts)


class _Table:
    """A CSV: which label it gives to which file."""

    def __init__(self, file: PackedFile, reader: PackReader, info: DatasetInfo) -> None:
        self.name = file.name
        self.folder = _parts(file.name)[:-1]
        self.labels: dict[Parts, tuple[str, str]] = {}  # path → label, and the path as it is written
        self.by_name: dict[str, list[Parts]] = defaultdict(list)
        self.used = set[Parts]()
        try:
            text = io.StringIO(reader.read(file).decode("utf-8-sig"), newline="")
            self._read(csv.DictReader(text, strict=True), info)
        except UnicodeDecodeError:
            raise AtelierError(f"{self.name}: not UTF-8 text; save it as UTF-8") from None
        except csv.Error as error:
            raise AtelierError(f"{self.name}: not a CSV file ({error}); save it as CSV") from None

    def _read(self, rows: "csv.DictReader[str]", info: DatasetInfo) -> None:
        for column in (info.file_column, info.label_column):
            if column not in (rows.fieldnames or ()):
                raise AtelierError(
                    f"{self.name}: has no column '{column}', only {list(rows.fieldnames or ())}; set file_column and "
                    "label_column"
                )
        for row in rows:
            file, label = row[info.file_column], row[info.label_column]
            if not file or label is None:
                raise AtelierError(f"{self.name}: line {rows.line_num} lacks a file or a label; complete or remove it")
            parts, label = _parts(file), label.strip()
            if parts not in self.labels:
                self.labels[parts] = label, file
                self.by_name[parts[-1] if parts else ""].append(parts)
            elif self.labels[parts][0] != label:
                raise AtelierError(
                    f"{self.name}: line {rows.line_num} gives '{file}' another label than before; remove one"
                )

    def distance(self, picture: Parts) -> int:
        """How many folders lie between the table and a picture below it; many, if the picture lies elsewhere."""
        depth = len(self.folder)
        return len(picture) - depth if picture[:depth] == self.folder else sys.maxsize

    def rows_for(self, picture: Parts, stem: str) -> list[Parts]:
        """The rows that name a picture by its path, its name, or its name without its suffix: the longest paths."""
        best, longest = list[Parts](), 0
        for row in self.by_name[picture[-1]] + (self.by_name[stem] if stem != picture[-1] else []):
            length = min(len(row), len(picture))
            if row[-length:-1] == picture[-length:-1] and length >= longest:
                best, longest = [*(best if length == longest else []), row], length
        return best


def _labels_by_tables(
    pictures: Sequence[PackedFile], tables: list[_Table], info: DatasetInfo
) -> tuple[list[Label], list[LeftOut]]:
    labels = [_label_by_tables(picture.name, tables, info) for picture in pictures]
    unused = []
    for table in tables:
        if others := [file for parts, (_, file) in table.labels.items() if parts not in table.used]:
            reason = f"{len(others)} of its rows name no picture here, such as '{others[0]}'"
            unused.append(LeftOut(table.name, reason, is_picture=False))
    return labels, unused


def _label_by_tables(name: str, tables: list[_Table], info: DatasetInfo) -> Label:
    """The label in the table nearest to a picture: beside it, in a folder around it, or else anywhere."""
    picture, stem = _parts(name), _comparable(PurePosixPath(name).stem)
    found = dict[str, tuple[_Table, Parts]]()
    for distance in sorted({table.distance(picture) for table in tables}):
        for table in tables:
            if table.distance(picture) == distance:
                for row in table.rows_for(picture, stem):
                    found[table.labels[row][0]] = table, row
                    table.used.add(row)
        if found:
            break
    if not found:
        return f"not in {info.labels}"
    if len(found) > 1:
        return f"given more than one label in {info.labels}"
    (label, (table, row)), *_ = found.items()
    index = _class_by_name(label, info.class_names)
    if index is None:
        raise AtelierError(
            f"{table.name}: '{table.labels[row][1]}' has label '{label}', no class; correct it, or add it to classes"
        )
    return index

"""The label of each picture, from the folders it lies in or from a CSV among the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from atelier.config.catalogue import DatasetInfo
from atelier.config.records import LeftOut
from atelier.data.pack import PackedFile, PackReader
from atelier.errors import AtelierError

Label = int | str  # a class's index, or why the picture has none

CSV_LIMIT_BYTES = 100_000_000


def find_labels(
    pictures: Sequence[PackedFile], tables: Sequence[PackedFile], reader: PackReader, info: DatasetInfo
) -> tuple[list[Label | None], list[LeftOut]]:
    """The label of each picture, None for all if the data set has no classes; and the labels that name no picture.

    Raises:
        AtelierError: if there is no such CSV, it cannot be read, or it names classes that do not exist.
    """
    if not info.class_names:
        return [None] * len(pictures), []
    if info.labels == "folders":
        return [_label_by_folder(picture.name, info.class_names) for picture in pictures], []
    return _labels_by_table(pictures, _read_table(tables, reader, info), info)


def _label_by_folder(name: str, class_names: Sequence[str]) -> Label:
    """The innermost folder that has the name of a class."""
    for folder in reversed(PurePosixPath(name).parent.parts):
        if folder in class_names:
            return class_names.index(folder)
    return "in no folder with the name of a class"


def _read_table(tables: Sequence[PackedFile], reader: PackReader, info: DatasetInfo) -> dict[str, str]:
    """The rows of the CSV: file → name of the class."""
    found = [table for table in tables if PurePosixPath(table.name).name == info.labels]
    if len(found) != 1:
        raise AtelierError(f"{info.title}: {len(found)} files '{info.labels}' among the pictures, expected one; add it")
    where = found[0].name
    if found[0].bytes > CSV_LIMIT_BYTES:
        raise AtelierError(f"{where}: larger than {CSV_LIMIT_BYTES / 1e6:.0f} MB; keep file and label only")
    try:
        rows = csv.DictReader(io.StringIO(reader.read(found[0]).decode("utf-8-sig"), newline=""), strict=True)
        for column in (info.file_column, info.label_column):
            if column not in (rows.fieldnames or ()):
                raise AtelierError(
                    f"{where}: has no column '{column}', only {rows.fieldnames}; set file_column and label_column"
                )
        table = dict[str, str]()
        for row in rows:
            file, label = row[info.file_column], row[info.label_column]
            if not file or label is None:
                raise AtelierError(f"{where}: line {rows.line_num} lacks a file or a label; complete or remove it")
            if table.setdefault(file, label) != label:
                raise AtelierError(
                    f"{where}: line {rows.line_num} gives '{file}' another label than before; remove one"
                )
    except UnicodeDecodeError:
        raise AtelierError(f"{where}: not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise AtelierError(f"{where}: not a CSV file ({error}); save it as CSV") from None
    return table


def _labels_by_table(
    pictures: Sequence[PackedFile], table: dict[str, str], info: DatasetInfo
) -> tuple[list[Label | None], list[LeftOut]]:
    """Rows name pictures by their path, their name, or their name without its suffix."""
    index = {name: i for i, name in enumerate(info.class_names)}
    for file, label in table.items():
        if label not in index:
            raise AtelierError(
                f"{info.labels}: '{file}' has label '{label}', which is no class; correct it or add the class"
            )
    used, labels = set[str](), list[Label | None]()
    for picture in pictures:
        path = PurePosixPath(picture.name)
        key = next((key for key in (picture.name, path.name, path.stem) if key in table), None)
        if key is None:
            labels.append(f"not in {info.labels}")
        else:
            labels.append(index[table[key]])
            used.add(key)
    return labels, [LeftOut(file, f"in {info.labels} but no such picture") for file in table if file not in used]

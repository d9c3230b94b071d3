"""The stage `prepare`: from raw files to arrays, a card and a contact sheet in `data/prepared/DATASET/`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier.config import Params
from atelier.config.catalogue import DATASETS, DatasetInfo
from atelier.config.records import DataCard, LeftOut, SplitCard
from atelier.data import pack
from atelier.data.arrays import SPLITS, Split, prepared_folder, read_idx, stored_images
from atelier.data.images import Form, render_all, resize_all
from atelier.data.labels import find_labels, split_by_folder
from atelier.data.unfinished import Outcome, Unfinished
from atelier.data.writer import SplitWriter
from atelier.errors import AtelierError
from atelier.files import atomic_directory, digest, digest_of, folder_digest
from atelier.pictures import Images, save_png, tile
from atelier.progress import bar, watch

ROWS_AT_A_TIME = 5000
NAMED_IN_ERROR = 3


class Sorter:
    """Decides the split of each picture, and keeps the same picture from being in both."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.counts = {"train": 0, "test": 0}
        self.seen: dict[bytes, Split] = {}

    def split_of(self, name: str, sha256: bytes) -> Split | LeftOut | None:
        """The split; None for a picture beyond the split; or why it is left out."""
        split = self._wanted(name, sha256)
        if split is None or isinstance(split, LeftOut):
            return split
        if self.seen.setdefault(sha256[:16], split) != split:
            return LeftOut(name, "the same picture is in the other split")
        self.counts[split] += 1
        return split

    def _wanted(self, name: str, sha256: bytes) -> Split | LeftOut | None:
        if self.info.split == "share":
            # by what it shows: it stays where it is when others come or go
            return "test" if int.from_bytes(sha256[:8], "big") < self.info.test_share * 2**64 else "train"
        if self.info.split == "first":
            if self.counts["train"] < self.info.train_images:
                return "train"
            return "test" if self.counts["test"] < self.info.test_images else None
        return split_by_folder(name, self.info) or LeftOut(name, "in no folder 'train' or 'test'")


@dataclass(frozen=True)
class Piece:
    """Some images (n, h, w, c) of one split, with their labels (n,)."""

    split: Split
    images: Images
    labels: npt.NDArray[np.int64]


def prepare(dataset: str, params: Params, root: Path, workers: int | None = None) -> Path:
    """Write arrays, labels, card and contact sheet of a data set; the same bytes whatever the number of workers.

    One that was stopped goes on after the last file of images that was full.

    Args:
        dataset: its name.
        params: of the project.
        root: the workspace.
        workers: processes to decode pictures with; as many as there are processors if None.

    Raises:
        InputError: if the raw files are not there.
        AtelierError: if they are not what the data set announces, or too many pictures have to be left out.
    """
    info, settings = params.dataset(dataset), params.prepare
    form = Form(info.side, info.channels, info.fit, info.background, settings.limit_megapixels)
    raw = root / "data" / "raw" / dataset
    target = prepared_folder(root, dataset)
    left_out, unused = list[LeftOut](), list[str]()
    packed = None if info.arrays else pack.read_pack(raw, dataset)
    identity = None if packed is None else digest_of(f"{packed.sha256} {info} {form} {_code()}".encode())
    with atomic_directory(target) as folder, Unfinished(target, identity) as unfinished:
        if packed is None:
            pieces = _read_arrays(raw, dataset, info, form)
            raw_sha256 = {path.name: digest(path) for path in sorted(raw.glob("*.idx"))}
        else:
            pieces = _read_pictures(raw, packed, info, form, workers, unfinished, left_out, unused)
            raw_sha256 = packed.sha256
        shape, classes = (info.side, info.side, info.channels), len(info.class_names)
        writers = {
            split: SplitWriter(unfinished.folder, split, shape, classes, unfinished.full[split], unfinished.add_full)
            for split in SPLITS
        }
        for piece in pieces:
            writers[piece.split].add(piece.images, piece.labels)
        splits = {split: writer.close() for split, writer in writers.items()}
        good = len(unused) + sum(split.images for split in splits.values())
        _check_left_out(info, left_out, good, settings.left_out_limit)
        _check_splits(info, splits)
        unfinished.move_to(folder)
        _write_contact_sheet(folder, splits["train"], classes, settings.contact_sheet_per_class)
        card = DataCard(
            dataset=dataset,
            title=info.title,
            source=info.source,
            licence=info.licence,
            height=info.side,
            width=info.side,
            channels=info.channels,
            class_names=list(info.class_names),
            raw_sha256=raw_sha256,
            splits=splits,
            contact_sheet_sha256=digest(folder / "contact-sheet.png"),
            left_out=left_out,
            unused=len(unused),
        )
        card.write(folder / "card.json")
    return target


def _code() -> str:
    """What decides how a picture is decoded and where it goes."""
    from PIL import __version__

    return f"{folder_digest(Path(__file__).parent)} {__version__}"


def _read_arrays(raw: Path, dataset: str, info: DatasetInfo, form: Form) -> Iterator[Piece]:
    for split in SPLITS:
        images = read_idx(raw / f"{split}-images.idx", dataset, dimensions=3)
        labels = read_idx(raw / f"{split}-labels.idx", dataset, dimensions=1)
        side = DATASETS[dataset].side
        if images.shape[1:] != (side, side):
            raise AtelierError(
                f"{info.title}: {split} images are {(*images.shape[1:], 1)}, expected {(side, side, 1)}; "
                "run ingest again"
            )
        if len(images) != len(labels):
            raise AtelierError(f"{info.title}: {len(images)} {split} images and {len(labels)} labels; run ingest again")
        if labels.max(initial=0) >= len(info.class_names):
            raise AtelierError(
                f"{raw / f'{split}-labels.idx'}: label {labels.max()} names no class of {info.title}; run ingest again"
            )
        starts = range(0, len(images), ROWS_AT_A_TIME)
        for start in watch(starts, len(starts), f"prepare {dataset} {split}", "piece"):
            rows = slice(start, start + ROWS_AT_A_TIME)
            yield Piece(split, resize_all(images[rows][..., None], form), labels[rows].astype(np.int64))


def _read_pictures(
    raw: Path,
    packed: pack.Pack,
    info: DatasetInfo,
    form: Form,
    workers: int | None,
    unfinished: Unfinished,
    left_out: list[LeftOut],  # filled, as is `unused`
    unused: list[str],
) -> Iterator[Piece]:
    labels, others = find_labels(raw, packed, info)
    left_out += packed.left_out + others
    pairs = list(zip(packed.pictures, labels, strict=True))
    labelled = [(file, label) for file, label in pairs if not isinstance(label, str)]
    left_out += [LeftOut(file.name, label) for file, label in pairs if isinstance(label, str)]
    sorter = Sorter(info)

    def split_of(number: int, outcome: Outcome) -> Split | None:
        name = labelled[number][0].name
        split = LeftOut(name, outcome) if isinstance(outcome, str) else sorter.split_of(name, outcome)
        if isinstance(split, LeftOut):
            left_out.append(split)
            return None
        if split is None:
            unused.append(name)
        return split

    again: dict[int, Split] = {}  # what was decoded before, and is in no full file
    written = {split: sum(shard.images for shard in full) for split, full in unfinished.full.items()}
    known: dict[Split, list[int]] = {split: [] for split in SPLITS}  # labels of the images in full files
    for number, outcome in enumerate(unfinished.outcomes):
        if split := split_of(number, outcome):
            if sorter.counts[split] > written[split]:
                again[number] = split
            else:
                known[split].append(labelled[number][1])
    nothing = np.empty((0, form.side, form.side, form.channels), np.uint8)
    for split, its_labels in known.items():
        yield Piece(split, nothing, np.array(its_labels, dtype=np.int64))

    wanted = [*again, *range(len(unfinished.outcomes), len(labelled))]
    numbers = iter(wanted)
    rendered = render_all(raw, [labelled[number][0] for number in wanted], form, workers)
    with bar(len(wanted), f"prepare {raw.name}", "picture") as advance:
        for result in rendered:
            kept: dict[Split, dict[int, int]] = {split: {} for split in SPLITS}  # row of the images → label
            row, new = 0, list[Outcome]()
            for outcome, number in zip(result.outcomes, numbers, strict=False):
                if (split := again.get(number)) is None:
                    split = split_of(number, outcome)
                    new.append(outcome)
                if split is not None:
                    kept[split][row] = labelled[number][1]
                row += isinstance(outcome, bytes)
            unfinished.add(new)
            advance(len(result.outcomes))
            for name, rows in kept.items():
                yield Piece(name, result.images[list(rows)], np.array(list(rows.values()), dtype=np.int64))


def _check_left_out(info: DatasetInfo, left_out: list[LeftOut], good: int, limit: float) -> None:
    pictures = [item for item in left_out if item.is_picture]
    if len(pictures) > limit * (good + len(pictures)):
        named = "; ".join(f"{item.file}: {item.reason}" for item in pictures[:NAMED_IN_ERROR])
        raise AtelierError(
            f"{info.title}: {len(pictures)} of {good + len(pictures)} pictures would be left out ({named}"
            f"{'; …' if len(pictures) > NAMED_IN_ERROR else ''}); mend them, or raise prepare.left_out_limit"
        )


def _check_splits(info: DatasetInfo, splits: dict[Split, SplitCard]) -> None:
    train, test = splits["train"].images, splits["test"].images
    if info.split == "first" and (train, test) != (info.train_images, info.test_images):
        raise AtelierError(
            f"{info.title}: split 'first' wants {info.train_images} + {info.test_images} pictures, {train + test} are "
            "good; set train_images and test_images of prepare.sets"
        )
    for split in SPLITS:
        if not splits[split].images:
            raise AtelierError(
                f"{info.title}: none of {train + test} pictures is for '{split}'; add pictures, or set split or "
                "test_share of prepare.sets"
            )
    for name, count in zip(info.class_names, splits["train"].by_class or (), strict=False):
        if not count:
            raise AtelierError(f"{info.title}: no picture of class '{name}' to train on; add some, or remove the class")


def _write_contact_sheet(folder: Path, train: SplitCard, classes: int, per_class: int) -> None:
    """The first training images of each class, a row a class; without classes, as many rows as ten classes have."""
    images = stored_images([folder / name for name in train.image_files("train")], folder.name)
    if not classes:
        save_png(folder / "contact-sheet.png", tile(images[: 10 * per_class], columns=per_class))
        return
    labels = np.load(folder / "train-labels.npy")
    sheet = np.full((classes, per_class, *images.shape[1:]), 255, dtype=np.uint8)
    for label in range(classes):
        chosen = np.flatnonzero(labels == label)[:per_class]
        sheet[label, : len(chosen)] = images[chosen]
    save_png(folder / "contact-sheet.png", tile(sheet.reshape(-1, *images.shape[1:]), columns=per_class))

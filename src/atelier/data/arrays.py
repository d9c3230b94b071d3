"""The prepared form of a data set: uint8 images in files of bounded size, int64 labels, and a card."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from atelier.config.records import DataCard, SplitCard
from atelier.data.stored import StoredFile, StoredImages, stamp_of
from atelier.errors import AtelierError, InputError
from atelier.files import digest, files_below
from atelier.pictures import Images, Labels

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
HELD_BYTES = 2 << 30  # images that are read over and over are held in memory up to this size
PIECE = 100  # images of a set that is looked at from end to end

ManyImages = Images | StoredImages


@dataclass(frozen=True)
class PreparedSplit:
    """One split: images uint8 (n, height, width, channels), in memory or in their files; labels int64 (n,) or None."""

    images: ManyImages
    labels: Labels | None


def held(images: ManyImages) -> ManyImages:
    """The same images, in memory unless they are too many."""
    return np.array(images) if images.nbytes <= HELD_BYTES else images


def prepared_folder(root: Path, dataset: str) -> Path:
    """Where the prepared form of a data set lies."""
    return root / "data" / "prepared" / dataset


def read_card(root: Path, dataset: str) -> DataCard:
    """Read the card of a prepared data set: source, digests, counts, statistics."""
    return DataCard.read(prepared_folder(root, dataset) / "card.json", f"atelier prepare {dataset}")


def open_split(root: Path, dataset: str, split: Split) -> PreparedSplit:
    """Open one split without reading its images into memory, after comparing its files with the card.

    Raises:
        InputError: if it is not there.
        AtelierError: if it is damaged, or not what the card says.
    """
    card, folder = read_card(root, dataset), prepared_folder(root, dataset)
    said = card.splits[split]
    expected = {folder / name: sha256 for name, sha256 in said.image_files(split).items()}
    if said.labels_sha256:
        expected[folder / f"{split}-labels.npy"] = said.labels_sha256
    for path, sha256 in digests(path for path in expected if path.is_file()).items():
        if sha256 != expected[path]:
            raise AtelierError(
                f"{path}: altered, its sha256 is not the one on the card; run 'atelier prepare {dataset}' again"
            )
    opened = _open(folder, dataset, split, said)
    if opened.images.shape != (said.images, card.height, card.width, card.channels):
        raise AtelierError(
            f"{folder / 'card.json'}: does not fit {split}-images.npy; run 'atelier prepare {dataset}' again"
        )
    if (opened.labels is None) != (said.labels_sha256 is None) or (
        opened.labels is not None and opened.labels.max(initial=0) >= len(card.class_names)
    ):
        raise AtelierError(
            f"{folder / 'card.json'}: does not fit {split}-labels.npy; run 'atelier prepare {dataset}' again"
        )
    return opened


def digests(paths: Iterable[Path], algorithm: str = "sha256") -> dict[Path, str]:
    """The digest of each file, taken of several at a time."""
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(lambda path: digest(path, algorithm), paths), strict=True))


def validation_places(images: ManyImages, share: float) -> npt.NDArray[np.bool_]:
    """Which of the images (n, h, w, c) are kept for validation: those whose digest lies in the first `share` of all.

    Content alone decides: duplicates stay together, and neither order nor other images move an image across. It is
    another digest than the one that test images of one's own are chosen by, which none of these has a small one of.
    """
    limit = int(share * 2**64)
    of_images = (
        hashlib.blake2b(image.tobytes(), digest_size=8, person=b"validation").digest()
        for start in range(0, len(images), PIECE)
        for image in images[start : start + PIECE]
    )
    return np.fromiter((int.from_bytes(one, "big") < limit for one in of_images), np.bool_, len(images))


def _open(folder: Path, dataset: str, split: Split, said: SplitCard) -> PreparedSplit:
    images = stored_images([folder / name for name in said.image_files(split)], dataset)
    if not (path := folder / f"{split}-labels.npy").is_file():
        return PreparedSplit(images, None)
    labels = np.array(_open_array(path, dataset, np.int64, dimensions=1))
    if len(labels) != len(images) or labels.min(initial=0) < 0:
        raise AtelierError(f"{path}: damaged, not a label for each image; run 'atelier prepare {dataset}' again")
    return PreparedSplit(images, labels)


def stored_images(paths: Sequence[Path], dataset: str) -> StoredImages:
    """The images in these files, one file after another.

    Raises:
        InputError: if one is not there.
        AtelierError: if one is damaged.
    """
    files, shapes, remedy = list[StoredFile](), list[tuple[int, ...]](), f"run 'atelier prepare {dataset}' again"
    for path in paths:
        array = _open_array(path, dataset, np.uint8, dimensions=4)
        if not array.flags.c_contiguous:
            raise AtelierError(f"{path}: damaged, another kind of array; {remedy}")
        files.append(StoredFile(path, array.offset, len(array), stamp_of(path.stat())))
        shapes.append(array.shape[1:])
        if shapes[-1] != shapes[0]:
            raise AtelierError(f"{path}: damaged, its images have another size than those of {paths[0].name}; {remedy}")
    height, width, channels = shapes[0]
    return StoredImages(files, (height, width, channels))


def _open_array(path: Path, dataset: str, dtype: type, dimensions: int) -> "np.memmap[Any, Any]":
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier prepare {dataset}' first")
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # ValueError, EOFError, SyntaxError, TypeError, OverflowError and more
        raise AtelierError(
            f"{path}: damaged, not an array ({str(error)[:100]}); run 'atelier prepare {dataset}' again"
        ) from None
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.ndim != dimensions:
        raise AtelierError(f"{path}: damaged, another kind of array; run 'atelier prepare {dataset}' again")
    return array


def encode_idx(array: npt.NDArray[np.uint8]) -> bytes:
    """IDX bytes of an array of unsigned bytes: magic number, sizes (big-endian), then the values."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def read_idx(path: Path, dataset: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, read only.

    Raises:
        InputError: if it is not there.
        AtelierError: if it is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier ingest {dataset}' first")
    content, header = path.read_bytes(), 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(shape):
        raise AtelierError(
            f"{path}: damaged, not an IDX file of {dimensions} dimensions; run 'atelier ingest {dataset}' again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def dvc_md5(folder: Path) -> str:
    """The digest by which DVC knows a folder, computed anew: right whether or not dvc.lock is up to date."""
    entries = [
        {"md5": md5, "relpath": path.relative_to(folder).as_posix()}
        for path, md5 in digests(files_below(folder), "md5").items()
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


@dataclass
class Found:
    """How many files and images were looked at, and each problem in one line."""

    files: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)


def check(dataset: str, root: Path) -> Found:
    """Verify every file that the card names, and that the arrays are what it says.

    Raises:
        InputError: if there is no card.
        AtelierError: if the card itself cannot be read.
    """
    found = Found()
    raw, prepared = root / "data" / "raw" / dataset, prepared_folder(root, dataset)
    card = read_card(root, dataset)
    expected = {raw / name: sha256 for name, sha256 in card.raw_sha256.items()}
    expected[prepared / "contact-sheet.png"] = card.contact_sheet_sha256
    for split in SPLITS:
        expected |= {prepared / name: sha256 for name, sha256 in card.splits[split].image_files(split).items()}
        if sha256 := card.splits[split].labels_sha256:
            expected[prepared / f"{split}-labels.npy"] = sha256
    now = digests(path for path in expected if path.is_file())
    for path, sha256 in expected.items():
        found.files += 1
        if path not in now:
            found.problems.append(f"{path}: missing")
        elif now[path] != sha256:
            found.problems.append(f"{path}: altered, its sha256 is not the one on the card")
    present = {path for folder in (raw, prepared) for path in files_below(folder)}
    strangers = present - expected.keys() - {prepared / "card.json"}
    found.problems += [f"{path}: not on the card" for path in sorted(strangers)]
    if not found.problems:
        for split in SPLITS:
            found.images += _check_split(dataset, root, card, split, found.problems)
    return found


def _check_split(dataset: str, root: Path, card: DataCard, split: Split, problems: list[str]) -> int:
    """Digests are right: what is left is a card that contradicts the arrays it names."""
    said = card.splits[split]
    opened = _open(prepared_folder(root, dataset), dataset, split, said)
    shape = (said.images, card.height, card.width, card.channels)
    where = f"{dataset}: {split}"
    if opened.images.shape != shape:
        problems.append(f"{where}: images are {opened.images.shape}, the card says {shape}")
    if opened.labels is not None:
        by_class = np.bincount(opened.labels, minlength=len(card.class_names)).tolist()
        if by_class != said.by_class:
            problems.append(f"{where}: labels count {by_class}, the card says {said.by_class}")
    return len(opened.images)

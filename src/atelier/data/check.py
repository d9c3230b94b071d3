"""`atelier data check`: what lies on disk against the card of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from atelier.config.records import DataCard
from atelier.data.arrays import SPLITS, Split, open_split, prepared_folder, read_card
from atelier.files import digest, files_below


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
        expected[prepared / f"{split}-images.npy"] = card.splits[split].images_sha256
        if sha256 := card.splits[split].labels_sha256:
            expected[prepared / f"{split}-labels.npy"] = sha256
    for path, sha256 in expected.items():
        found.files += 1
        if not path.is_file():
            found.problems.append(f"{path}: missing")
        elif digest(path) != sha256:
            found.problems.append(f"{path}: altered, its sha256 is not the one on the card")
    present = {path for folder in (raw, prepared) if folder.is_dir() for path in files_below(folder)}
    strangers = present - expected.keys() - {prepared / "card.json"}
    found.problems += [f"{path}: not on the card" for path in sorted(strangers)]
    if not found.problems:
        for split in SPLITS:
            found.images += _check_split(dataset, root, card, split, found.problems)
    return found


def _check_split(dataset: str, root: Path, card: DataCard, split: Split, problems: list[str]) -> int:
    """Digests are right: what is left is a card that contradicts the arrays it names."""
    opened, said = open_split(root, dataset, split), card.splits[split]
    shape = (said.images, card.height, card.width, card.channels)
    where = f"{dataset}: {split}"
    if opened.images.shape != shape:
        problems.append(f"{where}: images are {opened.images.shape}, the card says {shape}")
    if opened.labels is not None:
        by_class = np.bincount(opened.labels, minlength=len(card.class_names)).tolist()
        if by_class != said.by_class:
            problems.append(f"{where}: labels count {by_class}, the card says {said.by_class}")
    return len(opened.images)

"""Small real pictures for tests, made here from a seed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from atelier.config import Params, load_params
from atelier.config.records import DataCard
from atelier.data.arrays import read_card
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare


def picture_array(seed: int, side: int = 32) -> npt.NDArray[np.uint8]:
    """Pixels (side, side, 3) that show something of their own: a disc of a colour on a ramp."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, colour = generator.uniform(side / 4, 3 * side / 4, 2), generator.integers(0, 256, 3)
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (side / 4) ** 2
    ramp = np.stack([x, y, x + y], axis=-1) * 255 // (2 * side)
    return np.where(disc[..., None], colour, ramp).astype(np.uint8)


def picture(seed: int, side: int = 32, form: str = "PNG", mode: str = "RGB") -> bytes:
    """One such picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture_array(seed, side)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int = 60, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`count` pictures, in a folder a class, or flat without classes."""
    for number in range(count):
        parent = folder / classes[number % len(classes)] if classes else folder
        parent.mkdir(parents=True, exist_ok=True)
        (parent / f"{number}.png").write_bytes(picture(number))
    return folder


PARAMS = """
datasets: [own]
runs: {run: {dataset: own, model: cgan}}
ingest: {paths: {own: SOURCE}}
prepare: {sets: {own: SETTINGS}}
evaluate: {extractors: []}
"""


def write_params(root: Path, source: Path | str, settings: str) -> Path:
    """A `params.yaml` with one data set, `own`."""
    path = root / "params.yaml"
    path.write_text(PARAMS.replace("SOURCE", f'"{source}"').replace("SETTINGS", settings), encoding="utf-8")
    return path


def make(root: Path, source: Path | str, settings: str, workers: int | None = 1) -> Params:
    """Ingest and prepare the data set `own`."""
    root.mkdir(exist_ok=True)
    params = load_params(write_params(root, source, settings))
    ingest("own", params, root, lambda message: None)
    prepare("own", params, root, workers)
    return params


def card_of(root: Path, source: Path | str, settings: str) -> DataCard:
    """Its card, once it is made."""
    make(root, source, settings)
    return read_card(root, "own")


def counts(card: DataCard) -> list[int]:
    """How many pictures train and test have, each class by itself if there are classes."""
    splits = (card.splits["train"], card.splits["test"])
    return [sum(numbers) for numbers in zip(*(split.by_class or [split.images] for split in splits), strict=True)]


def tar_of(folder: Path, path: Path) -> Path:
    """A tar of a folder."""
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        archive.add(folder, arcname=folder.name)
    return path

"""`atelier status` and `atelier watch RUN`: what stages of a workspace are doing, from their locks and journals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atelier.config import Params
from atelier.errors import InputError
from atelier.files import held_by
from atelier.journal import duration, read_journal, read_timing, training_folder

# what each stage writes, and so holds
FOLDERS = {
    "ingest": "data/raw",
    "prepare": "data/prepared",
    "reference": "reference",
    "train": "checkpoints",
    "evaluate": "reports",
    "register": "registry",
}
BARS = "▁▂▃▄▅▆▇█"
UPPER_HALF = "▀"  # whose colour and background are two pixels, one above the other
NOT_FIGURES = ("kimg", "step")
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """A stage that a process is writing the result of.

    Attributes:
        stage: its name.
        name: of the data set or run.
        process: which, where, and since when.
        progress: of a training; None of other stages, and before its first line.
    """

    stage: str
    name: str
    process: str
    progress: Progress | None

    @property
    def line(self) -> tuple[str, ...]:
        """In words, as a row of a table."""
        return (f"{self.stage} {self.name}", self.progress.line if self.progress else "–", self.process)


@dataclass(frozen=True)
class Progress:
    """How far a training is, at the last line of its journal.

    Attributes:
        kimg: seen, of `total_kimg`, by all seeds together.
        images_per_second: lately.
        figures: of the journal, by name: the value of each line.
        picture: the last one it drew.
    """

    kimg: float
    total_kimg: float
    images_per_second: float
    figures: dict[str, list[float]]
    picture: Path | None

    @property
    def seconds_left(self) -> float:
        """At the speed it has lately."""
        return max(self.total_kimg - self.kimg, 0) * 1000 / max(self.images_per_second, 1e-9)

    @property
    def line(self) -> str:
        """In words."""
        done = f"{self.kimg:g} of {self.total_kimg:g} kimg, {self.kimg / self.total_kimg:.0%}"
        return f"{done}, {self.images_per_second:,.0f} images/s, {duration(self.seconds_left)} left"


def running(params: Params, root: Path) -> list[Running]:
    """The stages that are being written now, in the order of the pipeline."""
    found = []
    for stage, folder in FOLDERS.items():
        for lock in sorted((root / folder).glob(".*.lock")):
            name = lock.name[1:].removesuffix(".lock")
            process = held_by(lock.with_name(name))
            if process is not None:
                progress = progress_of(name, params, root) if stage == "train" and name in params.runs else None
                found.append(Running(stage, name.removesuffix(".json"), process, progress))
    return found


def progress_of(run: str, params: Params, root: Path) -> Progress | None:
    """How far a training is, or was when it ended; None before its first line."""
    recipe, place = params.run(run).recipe, training_folder(root, run)
    kimg, rate, lines = 0.0, 0.0, list[dict[str, Any]]()
    for seed in recipe.all_seeds if recipe.seeds > 1 else ():
        folder = root / "checkpoints" / run / f"seed-{seed}"
        if of_seed := read_journal(folder / "journal.jsonl", growing=True):
            place, lines = folder, of_seed
            has_ended = (folder / "model").is_dir()
            kimg += recipe.kimg if has_ended else lines[-1]["kimg"]
            rate += 0.0 if has_ended else _rate(folder)
    if not lines:  # of one seed, or beside the model of several
        lines = read_journal(place / "journal.jsonl", growing=True)
        if not lines:
            return None
        kimg, rate = lines[-1]["kimg"] + recipe.kimg * (recipe.seeds - 1), _rate(place)
    pictures = sorted((place / "pictures").glob("[!.]*.png"))
    names = [name for name in lines[0] if name not in NOT_FIGURES]
    return Progress(
        kimg=kimg,
        total_kimg=recipe.kimg * recipe.seeds,
        images_per_second=rate,
        figures={name: [line[name] for line in lines] for name in names},
        picture=pictures[-1] if pictures else None,
    )


def _rate(folder: Path) -> float:
    """Images a second, as the last line says."""
    times = read_timing(folder / "timing.jsonl", growing=True)
    return float(times[-1]["images_per_second"]) if times else 0.0


def watch(run: str, params: Params, root: Path, columns: int, colours: bool) -> Iterator[list[str]]:
    """What to show of a training: lines for a terminal, again whenever its journal has grown, until it ends.

    Args:
        run: of `params.yaml`.
        params: of the workspace.
        root: the workspace.
        columns: of the terminal.
        colours: whether it shows 24-bit colours; without them the picture is named.

    Raises:
        InputError: if no training of the run has begun.
    """
    params.run(run)
    shown = None
    while True:
        process = held_by(root / "checkpoints" / run)
        progress = progress_of(run, params, root)
        if progress is None and process is None:
            raise InputError(f"{run}: no training of it has begun here; start it by 'atelier train {run}'")
        if progress is not None and (progress, process) != shown:
            shown = (progress, process)
            yield [
                f"{run}: {progress.line}",
                process or "no process is training it",
                *_body(progress, columns, colours),
            ]
        if process is None:
            return
        time.sleep(LOOK_SECONDS)


def _body(progress: Progress, columns: int, colours: bool) -> list[str]:
    wide = max(map(len, progress.figures), default=0)
    lines = [
        f"{name.ljust(wide)} {values[-1]:>10.4g} {spark(values, columns - wide - 13)}"
        for name, values in progress.figures.items()
    ]
    if progress.picture is None:
        return lines
    return [*lines, *(blocks(progress.picture, columns) if colours else [str(progress.picture)])]


def spark(values: list[float], width: int) -> str:
    """A curve of one line: the mean of each of `width` shares of the values, between the smallest and the largest."""
    shares = [share.mean() for share in np.array_split(np.array(values), max(min(width, len(values)), 1))]
    low, high = min(shares), max(shares)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round(float(share - low) * scale)] for share in shares)


def blocks(picture: Path, columns: int) -> list[str]:
    """A picture as coloured half blocks, no wider than `columns` and no larger than it is."""
    from PIL import Image

    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    if image.width > columns:
        image = image.resize((columns, max(round(image.height * columns / image.width), 1)), Image.Resampling.BOX)
    pixels = np.asarray(image)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    return [
        "".join(
            f"\x1b[38;2;{';'.join(map(str, above))};48;2;{';'.join(map(str, below))}m{UPPER_HALF}"
            for above, below in zip(pixels[row].tolist(), pixels[row + 1].tolist(), strict=True)
        )
        + "\x1b[0m"
        for row in range(0, len(pixels), 2)
    ]


def in_place(frames: Iterator[list[str]], write: Callable[[str], object], is_terminal: bool) -> None:
    """Write each of some frames over the one before; one after the other where there is no terminal."""
    height = 0
    for lines in frames:
        write((f"\x1b[{height}F\x1b[J" if is_terminal and height else "") + "\n".join(lines) + "\n")
        height = len(lines)

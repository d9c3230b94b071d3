"""The journal: one JSON line a tick, written by training, read by everything else (MLflow, plots, the report)."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError
from atelier.files import fsync, owner, read_limited

LIMIT_BYTES = 256 << 20  # no honest journal is larger


class Journal:
    """An append-only file of JSON lines whose length is part of the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, whole."""
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()

    def bytes(self) -> int:
        """Length of the file, all of which is on the disk then."""
        fsync(self.path)
        return self.path.stat().st_size

    def truncate(self, length: int) -> None:
        """Forget what came after a checkpoint; 0 begins a file."""
        self.path.touch()
        os.truncate(self.path, length)


def record_folder(root: Path, run: str, weights_sha256: str) -> Path:
    """What a workspace alone knows of a model, by the digest of its sampler: what differs between two equal trainings.

    `timing.jsonl`: the times of the journal's lines; `mlflow.json`: how MLflow's run is found; `version.json`: what it
    is registered as here. It outlives a temporary folder of DVC's, whose experiment may be applied later.
    """
    return owner(root) / "runs" / run / weights_sha256[:16]


def training_folder(root: Path, run: str) -> Path:
    """Where journal and pictures of a training lie: with its checkpoints, and with its model once it has ended."""
    going_on = root / "checkpoints" / run
    return going_on if (going_on / "journal.jsonl").is_file() else root / "models" / run


def read_journal(path: Path, growing: bool = False) -> list[dict[str, float]]:
    """All lines, of the same figures in each, over a rising kimg.

    Args:
        path: of the file; none has no lines.
        growing: it is being written: a last line cut by a kill is left out.

    Raises:
        AtelierError: if one of them is no line of a journal.
    """
    if not path.is_file():
        return []
    content = read_limited(path, LIMIT_BYTES)
    if len(content) > LIMIT_BYTES:
        raise AtelierError(f"{path}: damaged, larger than {LIMIT_BYTES >> 20} MB; restore the file, or train again")
    *lines, rest = content.split(b"\n")
    if rest and not growing:
        lines.append(rest + b"?")  # was cut
    figures = list[dict[str, float]]()
    for number, line in enumerate(lines, 1):
        figures.append(_read_line(line, f"{path}:{number}", figures[-1] if figures else None))
    return figures


def read_timing(path: Path, growing: bool = False) -> list[dict[str, float]]:
    """`read_journal` of the times of a journal's lines: `unix`, `seconds` of training, `images_per_second`.

    Raises:
        AtelierError: if it is damaged.
    """
    lines = read_journal(path, growing)
    if lines and not {"unix", "seconds"} <= lines[0].keys():
        raise AtelierError(f"{path}: damaged, its lines say no times; restore the file, or remove it")
    return lines


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Every metric of a journal, by name: kimg and value of each line.

    Raises:
        AtelierError: if it is damaged, or names are no plain words, as those of files must be.
    """
    lines = read_journal(path)
    names = [name for name in (lines[0] if lines else ()) if name not in ("kimg", "step")]
    if not all(re.fullmatch("[A-Za-z0-9_]+", name) for name in names):
        raise AtelierError(f"{path}: damaged, its lines have not the same names in plain letters; train again")
    return {name: [(line["kimg"], line[name]) for line in lines] for name in names}


def duration(seconds: float) -> str:
    """In hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _read_line(line: bytes, place: str, before: dict[str, float] | None) -> dict[str, float]:
    try:
        pairs = json.loads(line, object_pairs_hook=list)
        figures = dict(pairs)
        if (
            len(figures) == len(pairs)
            and all(type(number) in (int, float) and math.isfinite(number) for number in figures.values())
            and figures["kimg"] > (before["kimg"] if before else -1)
            and (before is None or figures.keys() == before.keys())
        ):
            return figures
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError):
        pass
    raise AtelierError(f"{place}: damaged, not a line of figures; restore the file, or train again")

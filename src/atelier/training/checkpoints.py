"""Checkpoints: atomic, digest-checked, the last few kept, read without running anything they hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from atelier.errors import AtelierError, InputError
from atelier.files import digest_of, write_atomic

FORMAT = 1
MAGIC = b"ATELIER-CHECKPOINT "
SUFFIX = ".checkpoint"
PARTS = {"identity", "environment", "threads", "method", "position", "ranks", "journal_bytes", "timing_bytes"}


class Damaged(AtelierError):
    """A file that is no whole checkpoint; the one before may be."""


def save(folder: Path, images: int, state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint after `images` images and remove all but the newest `keep`.

    Raises:
        AtelierError: if it cannot be written; the ones before stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path = folder / f"{images:012d}{SUFFIX}"
    try:
        write_atomic(path, MAGIC + f"{FORMAT} {digest_of(payload)}\n".encode() + payload)
    except OSError as error:
        raise AtelierError(f"{path}: cannot write the checkpoint ({error.strerror}); {last_good(folder)}") from None
    for old in _newest_first(folder)[keep:]:
        old.unlink()


def load_newest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; None if there is none.

    Broken ones are named, set aside as `NAME.broken` and passed over, so that they never count among those kept.

    Raises:
        InputError: if the newest was written by a newer atelier: going back would throw its training away.
    """
    for path in _newest_first(folder):
        try:
            return read(path)
        except Damaged as error:
            path.rename(path.with_name(f"{path.name}.broken"))
            say(f"{error}; set aside as {path.name}.broken, going back to the one before")
    return None


def remove_all(folder: Path) -> None:
    """Remove every checkpoint, since another training begins in this folder."""
    for path in _newest_first(folder):
        path.unlink()


def last_good(folder: Path) -> str:
    """Name the newest checkpoint, for an error message."""
    newest = next(iter(_newest_first(folder)), None)
    return f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        Damaged: if it is not a whole checkpoint, or holds more than tensors and plain values.
        InputError: if it was written by a newer atelier.
    """
    content = path.read_bytes()
    header = content[:512].split(b"\n", 1)[0]
    words = header.removeprefix(MAGIC).split(b" ")
    if not header.startswith(MAGIC) or len(words) != 2 or not words[0].isdigit():
        raise Damaged(f"{path}: not a checkpoint of atelier")
    if int(words[0]) != FORMAT:
        raise InputError(f"{path}: written by a newer atelier; install that one, or remove the file to go back")
    payload = content[len(header) + 1 :]
    if digest_of(payload).encode() != words[1]:
        raise Damaged(f"{path}: damaged, its digest does not match")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # a forged payload can make the reader fail in any way
        raise Damaged(f"{path}: holds more than tensors and plain values, or is not readable") from None
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise Damaged(f"{path}: lacks parts of a checkpoint")
    return state

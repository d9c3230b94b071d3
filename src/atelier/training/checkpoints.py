"""Checkpoints: atomic, digest-checked, the last few kept, read without running anything they hold; and going on."""

from __future__ import annotations

import hashlib
import io
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import atelier
from atelier.config.reading import sentence
from atelier.config.records import differences
from atelier.errors import AtelierError, InputError
from atelier.files import digest, digest_of, read_limited, remove_folder, write_atomic
from atelier.models.recipe import Checked, Count, CountOrNone
from atelier.ranks import Ranks

FORMAT = 2
MAGIC = b"ATELIER-CHECKPOINT "
SUFFIX = ".checkpoint"
FORMER_WORLD_SIZES = (
    "former_world_sizes"  # in the environment and in a model's config: numbers of ranks before the last
)
JOURNAL, TIMING, PICTURES = "journal.jsonl", "timing.jsonl", "pictures"  # beside the checkpoints


class Checkpoint(Checked):
    """All that a training goes on from, beside the files in its folder."""

    identity: dict[str, Any]  # which training it is of: what its result depends on
    environment: dict[str, Any]  # where it ran, as far as its numbers depend on it
    threads: Count
    method: dict[str, Any]
    position: dict[str, int | float]  # a `loop.Position`
    ranks: list[dict[str, Any]]  # what each rank alone has: sums of figures, random states
    journal_bytes: CountOrNone
    timing_bytes: CountOrNone
    validation: dict[str, Any] | None = None  # a `validation.Progress`, where there is one
    sha256: dict[str, str]  # of each file beside the checkpoints, as it was then, by its name in their folder


class Damaged(AtelierError):
    """A file that is no whole checkpoint; the one before may be."""


def save(folder: Path, images: int, checkpoint: Checkpoint, keep: int) -> None:
    """Write the checkpoint after `images` images and remove all but the newest `keep`.

    Raises:
        AtelierError: if it cannot be written; the ones before stay.
    """
    buffer = io.BytesIO(_header(b""))
    length = buffer.seek(0, io.SEEK_END)
    torch.save(dict(checkpoint), buffer)
    content = buffer.getbuffer()  # large: not copied
    content[:length] = _header(content[length:])
    path = folder / f"{images:012d}{SUFFIX}"
    try:
        write_atomic(path, content)
    except OSError as error:
        raise AtelierError(f"{path}: cannot write the checkpoint ({error.strerror}); {last_good(folder)}") from None
    for old in _newest_first(folder)[keep:]:
        old.unlink()


def _header(payload: bytes | memoryview) -> bytes:
    return MAGIC + f"{FORMAT} {digest_of(payload)}\n".encode()


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
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


def last_good(folder: Path) -> str:
    """Name the newest checkpoint, for an error message."""
    newest = next(iter(_newest_first(folder)), None)
    return f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), reverse=True)


def read(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        Damaged: if it is not a whole checkpoint, or holds more than tensors and plain values.
        InputError: if it was written by a newer atelier.
    """
    if not path.is_file():
        raise Damaged(f"{path}: not a file")
    with path.open("rb") as file:
        header = file.readline(512)
        found = re.fullmatch(MAGIC + rb"([0-9]{1,9}) ([0-9a-f]{64})\n", header)
        if found is None:
            raise Damaged(f"{path}: not a checkpoint of atelier")
        if int(found[1]) != FORMAT:
            raise InputError(
                f"{path}: written by another atelier, in format {int(found[1])} where this one has {FORMAT}; install "
                "that one, or remove the file to go back"
            )
        # before it is read: what is none may be larger than memory
        if hashlib.file_digest(file, "sha256").hexdigest().encode() != found[2]:
            raise Damaged(f"{path}: damaged, its digest does not match")
        file.seek(len(header))
        payload = file.read()
    try:
        with warnings.catch_warnings(action="ignore"):  # of other kinds of pickles
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # a forged payload can make the reader fail in any way
        raise Damaged(f"{path}: holds more than tensors and plain values, or is not readable") from None
    try:
        return Checkpoint.model_validate(state)
    except ValidationError as error:
        raise Damaged(f"{path}: no checkpoint of a training: {sentence(error, Checkpoint)}") from None


def environment(ranks: Ranks, precision: str) -> dict[str, Any]:
    """Where a training runs, as far as its numbers depend on it."""
    cuda = ranks.device.type == "cuda"
    return {
        "world_size": ranks.world_size,
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "precision": precision,
        "atelier": atelier.__version__,
        "torch": str(torch.__version__),
    }


def take_up(
    folder: Path,
    identity: dict[str, Any],
    here: dict[str, Any],
    say: Callable[[str], None],
    allow_other_world_size: bool = False,
) -> Checkpoint | None:
    """The newest whole checkpoint, to go on from; None for a training that starts at zero.

    Other parameters or data ask for another training: it starts anew, and what the former left is removed. The same
    training in another `environment` would go on inexactly, so it is refused. Another number of ranks can be allowed:
    data order and noise stay, sums over the batch round otherwise.

    Raises:
        InputError: if the environment is another, the checkpoint was written by a newer atelier, or files that belong
            to it are gone.
    """
    found = load_newest(folder, say)
    if found is not None and (changed := list(differences(found.identity, identity))):
        say(f"{folder}: the checkpoint is of another training ({'; '.join(changed[:3])}); training starts anew")
        found = None
    if found is None:
        for path in (*_newest_first(folder), folder / JOURNAL, folder / TIMING):
            path.unlink(missing_ok=True)
        remove_folder(folder / PICTURES)
        return None
    was, now = found.environment, here
    former = was.get(FORMER_WORLD_SIZES, [])
    if allow_other_world_size and was["world_size"] != now["world_size"]:
        say(
            f"{folder}: a checkpoint of {was['world_size']} ranks, gone on with by {now['world_size']}: "
            "sums round otherwise from here on"
        )
        found = _over(now["world_size"], found)
        former = [*former, was["world_size"]]
        was = was | {"world_size": now["world_size"]}
    if former:
        now = now | {FORMER_WORLD_SIZES: former}
        was = was | {FORMER_WORLD_SIZES: former}
    if moved := list(differences(was, now)):
        raise InputError(
            f"{folder}: going on here would not be exact ({'; '.join(moved)}); "
            "start it as it was started, or remove that folder to train anew"
        )
    if gone := _gone(folder, found):
        raise InputError(
            f"{folder}: {gone} is not as the checkpoint needs it; put it back, or remove that folder to train anew"
        )
    return found.model_copy(update={"environment": now})


def _over(world_size: int, checkpoint: Checkpoint) -> Checkpoint:
    """With an entry for each of so many ranks: the mean of the sums, and the random states, which all ranks share."""
    entries = checkpoint.ranks
    sums = {name: torch.stack([one["sums"][name] for one in entries]).mean(0) for name in entries[0]["sums"]}
    return checkpoint.model_copy(update={"ranks": [entries[0] | {"sums": sums}] * world_size})


def _gone(folder: Path, checkpoint: Checkpoint) -> str:
    """A file that was there when a checkpoint was saved, and is not any more, or is another; empty if there is none."""
    lengths = {JOURNAL: checkpoint.journal_bytes, TIMING: checkpoint.timing_bytes}
    return next((n for n, was in checkpoint.sha256.items() if sha256_of(folder / n, lengths.get(n)) != was), "")


def sha256_of(path: Path, length: int | None) -> str:
    """sha256 of a file, or of its beginning; empty if there is no such file, or it is shorter."""
    if not path.is_file() or path.stat().st_size < (length or 0):
        return ""
    return digest(path) if length is None else digest_of(read_limited(path, length)[:length])

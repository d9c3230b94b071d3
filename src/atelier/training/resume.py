"""Whether a training goes on from a checkpoint, starts anew, or must not start at all."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import atelier
from atelier.errors import InputError
from atelier.ranks import Ranks
from atelier.training import checkpoints


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
    folder: Path, identity: dict[str, Any], here: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The state to go on from, out of the newest whole checkpoint; None for a training that starts at zero.

    Other parameters or data ask for another training: it starts anew, and what the former left is removed. The same
    training in another `environment` would go on inexactly, so it is refused.

    Raises:
        InputError: if the environment is another, or the checkpoint was written by a newer atelier.
    """
    state = checkpoints.load_newest(folder, say)
    if state is not None and (changed := list(differences(state["identity"], identity))):
        say(f"{folder}: the checkpoint is of another training ({'; '.join(changed[:3])}); training starts anew")
        state = None
    if state is None:
        checkpoints.remove_all(folder)
        for name in ("journal.jsonl", "timing.jsonl"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        return None
    if moved := list(differences(state["environment"], here)):
        raise InputError(
            f"{folder}: going on here would not be exact ({'; '.join(moved)}); "
            "start it as it was started, or remove that folder to train anew"
        )
    return state


def differences(then: Any, now: Any, key: str = "") -> Iterator[str]:
    """Each value that differs, as "key: then → now"."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in then | now:
            yield from differences(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif then != now:
        yield f"{key}: {then!r} → {now!r}"

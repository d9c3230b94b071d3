"""Several seeds of a run at the same time, each a process with its share of the cores or its card."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from atelier.config import Params
from atelier.errors import AtelierError, InputError
from atelier.files import write_atomic
from atelier.processes import Children, share_of_machine


def train_at_once(run: str, seeds: Sequence[int], params: Params, root: Path, say: Callable[[str], None]) -> None:
    """Train the seeds of a run, `train.seeds_at_once` at a time.

    When one fails, those that run are waited for and no other is started.

    Args:
        run: its name.
        seeds: to be trained; those that have ended are not trained again.
        params: of the workspace; each process reads them from a file beside the checkpoints.
        root: the workspace.
        say: told each line of the trainings, behind the seed.

    Raises:
        InputError: if a training is refused.
        AtelierError: if one fails.
        Terminated: after SIGTERM, once each has saved a checkpoint.
    """
    file = Path("checkpoints", run, "params.yaml")
    content = params.model_dump(mode="json", by_alias=True, exclude={"notify"}, exclude_unset=True)
    write_atomic(root / file, json.dumps(content))
    command = ["atelier", "train", run, "--root", str(root), "--params", str(file)]
    asyncio.run(_train(command, seeds, params.train.seeds_at_once, say))


async def _train(command: Sequence[str], seeds: Sequence[int], at_once: int, say: Callable[[str], None]) -> None:
    children = Children()
    slots, failed = list(range(at_once)), list[AtelierError]()
    room = asyncio.Semaphore(at_once)

    async def train_one(seed: int) -> None:
        async with room:
            if failed or children.signal:
                return
            slot = slots.pop(0)
            with open(os.devnull, "wb") as nowhere:  # each says where its model is
                child = await children.start(
                    *(*command, "--only-seed", str(seed)),
                    env=share_of_machine(at_once, _cards(), slot),
                    stdout=nowhere,
                    stderr=asyncio.subprocess.PIPE,
                )
            code, last = await children.follow(child, f"seed {seed}", say)
            slots.append(slot)
            if code and not children.signal:
                failed.append((InputError if code == InputError.exit_code else AtelierError)(f"seed {seed}: {last}"))

    async with asyncio.TaskGroup() as group:
        for seed in seeds:
            group.create_task(train_one(seed))
    children.raise_for_signal("the same command goes on")
    if failed:
        raise failed[0]


def _cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return named or [str(number) for number in range(torch.cuda.device_count())]

"""Trainings that are killed at random steps end exactly like ones that are not."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atelier.data import writer
from atelier.files import folder_digest
from atelier.training import checkpoints
from small_trainings import Kill, Training, figures_in_journal, figures_in_mlflow, make_workspace, newest_checkpoint

pytestmark = pytest.mark.processes
KILLS = int(os.environ.get("ATELIER_TEST_KILLS", "2"))  # a training; every other by SIGTERM
IMAGES_BETWEEN_KILLS = 1000
EVENTS = 90, 150  # of these images, with a checkpoint after each step


@pytest.mark.parametrize(
    ("run", "ranks", "resident_mb"), [("gan", 1, 2048), ("vae", 1, 0), ("gan", 2, 0), ("vae", 2, 2048)]
)
def test_killed_training_ends_like_an_uninterrupted_one(
    run: str, ranks: int, resident_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it matter whether its images are in memory, or read ahead from several files."""
    monkeypatch.setattr(writer, "FIRST_FILE_BYTES", 100_000)
    monkeypatch.setattr(writer, "FILE_BYTES", 50_000)
    plain, killed = make_workspace(tmp_path / "plain"), tmp_path / "killed"
    shutil.copytree(plain, killed)
    images = IMAGES_BETWEEN_KILLS * (KILLS + 1)
    options = (f"--set=runs.{run}.kimg={images / 1000}", "--set=train.checkpoint_seconds=1e-9")
    expected = last_checkpoint(plain, run, ranks, options)

    options = (*options, f"--set=train.resident_mb={resident_mb}")
    chance = random.Random(f"{run} {ranks}")
    for kill in range(KILLS):
        event, victim = chance.randrange(*EVENTS), chance.randrange(ranks)
        number = signal.SIGTERM if kill % 2 else signal.SIGKILL
        training = Training(killed, run, *options, ranks=ranks, kill=Kill(event, number, victim))
        if number == signal.SIGTERM:  # one is told, all stop
            assert training.finish([143] * ranks).count("SIGTERM: checkpoint saved") == 1
        else:
            training.finish([-signal.SIGKILL if rank == victim else 1 for rank in range(ranks)])

    found = last_checkpoint(killed, run, ranks, options)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not equal(value, found[name])] == []
    of_plain, of_killed = (root / "checkpoints" / run for root in (plain, killed))
    assert folder_digest(of_killed / "pictures") == folder_digest(of_plain / "pictures")
    assert (of_killed / "journal.jsonl").read_bytes() == (of_plain / "journal.jsonl").read_bytes()

    (killed / "models").unlink()
    Training(killed, run, *options, ranks=ranks).finish()
    status, figures = figures_in_mlflow(killed)
    assert status == "FINISHED"
    assert figures == figures_in_journal(of_plain / "journal.jsonl")
    assert (killed / "models" / run / "config.json").is_file()
    assert not (killed / "checkpoints" / run).exists()


@pytest.mark.parametrize("changed", [".removed", ".gan.end"])
def test_killed_after_its_end_it_is_not_made_again(changed: str, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    Training(root, "gan", "--set=runs.gan.kimg=0.3", kill=Kill(changed, signal.SIGKILL)).finish([-signal.SIGKILL])
    model = folder_digest(root / "models" / "gan")
    said = Training(root, "gan", "--set=runs.gan.kimg=0.3").finish()
    assert f"{root}/models/gan: made by this training, which was killed after that\n" in said
    assert figures_in_mlflow(root)[0] == "FINISHED"  # of the only run
    assert folder_digest(root / "models" / "gan") == model
    assert list((root / "checkpoints").iterdir()) == []


def last_checkpoint(root: Path, run: str, ranks: int, options: tuple[str, ...]) -> dict[str, Any]:
    """What a training saved at its end; a file in the place of `models/` keeps the result from being published."""
    (root / "models").touch()
    training = Training(root, run, *options, ranks=ranks)
    said = training.finish([1] + [0] * (ranks - 1))
    newest = newest_checkpoint(root, run)
    assert newest is not None
    assert f"models: File exists; the last good checkpoint is {newest}" in said
    state = dict(checkpoints.read(newest))
    # what tells the time, not the training
    del state["position"]["seconds"], state["timing_bytes"], state["sha256"]["timing.jsonl"]
    return dict(leaves(state))


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each tensor and plain value of a checkpoint, by its path."""
    if isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, state


def equal(one: Any, other: Any) -> bool:
    """Not nearly: the same values in the same type."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)

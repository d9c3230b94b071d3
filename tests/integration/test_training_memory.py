"""Data larger than the memory that training may have: read from disk, or refused in one line."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from atelier.files import digest, read_json, write_json
from small_trainings import Training, make_workspace

pytestmark = pytest.mark.processes
IMAGES, SIDE = 150_000, 64  # 1.8 GB
MEMORY_BYTES = 1_500_000_000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A workspace with so many black images, in a file with holes: they take no room on the disk."""
    root = make_workspace(tmp_path / "workspace")
    folder = root / "data" / "prepared" / "mnist"
    np.lib.format.open_memmap(folder / "train-images.npy", "w+", np.uint8, (IMAGES, SIDE, SIDE, 3))
    np.save(folder / "train-labels.npy", np.arange(IMAGES) % 10)
    card = read_json(folder / "card.json")
    sha256 = {f"{what}_sha256": digest(folder / f"train-{what}.npy") for what in ("images", "labels")}
    card |= {"height": SIDE, "width": SIDE, "channels": 3}
    card["splits"]["train"] |= {"images": IMAGES, **sha256}
    write_json(folder / "card.json", card)
    return root


def train(root: Path, resident_mb: int) -> Training:
    """Start a training that may not have more memory of its own."""
    training = Training(
        root,
        "gan",
        *("--set=prepare.sets.mnist={side: 64, channels: 3}", "--set=runs.gan.kimg=0.32"),
        f"--set=train.resident_mb={resident_mb}",
    )
    for rank in training.ranks:
        assert rank.pid is not None
        resource.prlimit(rank.pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    return training


def test_data_larger_than_memory_train_from_the_disk(large: Path) -> None:
    said = train(large, resident_mb=100_000).finish([1])
    assert said.splitlines()[-1].startswith("atelier: 1757 MB of images do not fit in memory (cpu); set train.resident")
    assert "Traceback" not in said
    train(large, resident_mb=1500).finish()
    assert (large / "models" / "gan" / "config.json").is_file()

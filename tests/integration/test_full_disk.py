"""A disk that is really full: what was good stays, and one line says what happened."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from atelier.config import Params, load_params
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.files import folder_digest
from atelier.training import checkpoints
from own_pictures import picture, write_params, write_pictures
from small_trainings import Training, images_seen, make_workspace, newest_checkpoint

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which only root may; NOT TESTED HERE"),
]
Mount = Callable[[Path, int], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a disk of some kilobytes in the place of a folder, until the test is over."""
    with ExitStack() as mounted:

        def mount(folder: Path, kilobytes: int) -> None:
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
            if subprocess.run(command, check=False).returncode:
                pytest.skip("this root may not mount; NOT TESTED HERE")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Write until nothing fits any more, or only so much."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    os.truncate(filler, filler.stat().st_size - leave_bytes)
    return filler


def test_training_stops_and_goes_on_once_there_is_room(tmp_path: Path, mount: Mount) -> None:
    root = make_workspace(tmp_path / "workspace")
    mount(root / "checkpoints", 50_000)
    training = Training(root, "gan")
    training.wait_for_checkpoint(beyond=0)
    filler = fill(root / "checkpoints")
    said = training.finish([1]).splitlines()
    newest = newest_checkpoint(root, "gan")
    assert newest is not None
    assert said[-1].startswith(f"atelier: {root}/checkpoints/gan")
    assert "No space left on device" in said[-1]
    assert f"the last good checkpoint is {newest}" in said[-1]
    assert "Traceback" not in "".join(said)
    assert checkpoints.read(newest).position["images"] == images_seen(root, "gan")
    filler.unlink()
    assert "going on from" in Training(root, "gan").finish()
    assert (root / "models" / "gan" / "config.json").is_file()


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, mount: Mount) -> None:
    root = make_workspace(tmp_path / "workspace")
    mount(root / "models", 40)
    said = Training(root, "gan").finish([1]).splitlines()
    assert [line for line in said if line.startswith("atelier: ")] == [said[-1]]
    assert said[-1].startswith(f"atelier: {root}/models/gan: No space left on device; the last good checkpoint is")
    assert "Traceback" not in "".join(said)
    assert list((root / "models").iterdir()) == []


def make(params: Params, root: Path) -> None:
    ingest("own", params, root, print)
    prepare("own", params, root)


@pytest.mark.parametrize("stage", ["raw", "prepared"])
def test_data_that_were_good_stay(tmp_path: Path, mount: Mount, stage: str) -> None:
    root, source = tmp_path / "root", write_pictures(tmp_path / "pets", classes=())
    mount(root / "data" / stage, 4000)
    params = load_params(write_params(root, source, "{side: 32, channels: 3, test_share: 0.3}"))
    make(params, root)
    filler = fill(root / "data" / stage, leave_bytes=100_000)  # it fills up half-way
    before = folder_digest(root / "data" / stage / "own")
    for number in range(100, 300):
        (source / f"{number}.png").write_bytes(picture(number, side=48))
    with pytest.raises(OSError, match="No space left on device") as raised:
        make(params, root)
    assert raised.value.filename == str(root / "data" / stage / "own")
    assert folder_digest(root / "data" / stage / "own") == before
    assert set((root / "data" / stage).iterdir()) == {filler, root / "data" / stage / "own"}


@pytest.mark.parametrize("kilobytes", [40, 2500])  # the classifier does not fit, or its statistics
def test_a_reference_that_does_not_fit_is_one_line(small_mnist: Path, mount: Mount, kilobytes: int) -> None:
    mount(small_mnist / "reference", kilobytes)
    command = [sys.executable, "-m", "atelier", "reference", "mnist", "--root", str(small_mnist)]
    result = subprocess.run(
        [*command, "--set", "reference.classifier_kimg=1", "--set", "evaluate.accuracy_kimg=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"atelier: {small_mnist}/reference/mnist: No space left on device"
    assert "Traceback" not in result.stderr
    assert list((small_mnist / "reference").iterdir()) == []

"""Two trainings of one run: the second is told who has it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from small_trainings import Training, images_seen, make_workspace

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_training_of_a_run_is_refused_while_the_first_lives(tmp_path: Path, ranks: int) -> None:
    root = make_workspace(tmp_path / "workspace")
    first = Training(root, "gan", "--set=runs.gan.kimg=1000")
    first.wait_for_checkpoint(beyond=0)
    second = Training(root, "gan", ranks=ranks, log="second")
    said = second.finish([1] * ranks)
    (line,) = (line for line in said.splitlines() if line.startswith("atelier: "))
    assert line.startswith(f"atelier: {root}/checkpoints/gan: process {first.ranks[0].pid} on ")
    assert line.endswith(" is writing it; wait for its end, or end it")
    Training(root, "vae", "--set=runs.vae.kimg=0.3", log="other").finish()  # another run is free
    first.wait_for_checkpoint(beyond=images_seen(root, "gan"))  # undisturbed
    first.ranks[0].kill()
    first.finish([-signal.SIGKILL])
    assert "training starts anew" in Training(root, "gan", "--set=runs.gan.kimg=0.3").finish()  # of another length
    assert list((root / "checkpoints").iterdir()) == []

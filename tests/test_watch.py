"""What is shown of stages that run."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atelier.config import load_params
from atelier.errors import InputError
from atelier.files import hold
from atelier.pictures import save_png
from atelier.watch import BARS, blocks, in_place, progress_of, running, spark, watch
from small_trainings import Training, make_workspace


@pytest.mark.processes
def test_a_training_is_seen_while_it_runs_and_after(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    params = load_params(root / "params.yaml", ("runs.gan.kimg=1000",))
    with pytest.raises(InputError, match=r"^gan: no training of it has begun here; start it by 'atelier train gan'$"):
        next(watch("gan", params, root, 80, False))
    assert running(params, root) == []
    training = Training(root, "gan", "--set=runs.gan.kimg=1000")
    training.wait_for_checkpoint(beyond=400)
    frames = watch("gan", params, root, 80, False)
    said = next(frames)
    assert re.match(r"gan: [\d.]+ of 1000 kimg, \d%, [\d,]+ images/s, .* left$", said[0])
    assert said[1].startswith(f"process {training.ranks[0].pid} on ")
    (loss,) = (line for line in said if line.startswith("discriminator_loss "))
    assert re.match(rf"discriminator_loss +[\d.]+ [{BARS}]+$", loss)
    assert Path(said[-1]).parent == root / "checkpoints" / "gan" / "pictures"
    (found,) = running(params, root)
    assert found.line[0] == "train gan"
    assert found.process == said[1]
    later = next(frames)  # the journal has grown
    assert later[0] != said[0]
    training.ranks[0].kill()
    training.finish([-signal.SIGKILL])
    assert [lines[1] for lines in frames] == ["no process is training it"]  # the last one
    assert running(params, root) == []
    progress = progress_of("gan", params, root)
    assert progress is not None
    assert progress.picture is not None
    assert len(blocks(progress.picture, 40)[0].split("▀")) == 41


def test_other_stages_are_seen_too(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    params = load_params(root / "params.yaml")
    (root / "reports").mkdir()
    (root / "reports" / ".gan.lock").write_text("left by a process that was killed")
    # a process sees no lock of its own: another one looks
    with hold(root / "reference" / "mnist"):
        command = [sys.executable, "-m", "atelier", "status", "--root", str(root)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"stage +progress +by\nreference mnist +– +process \d+ on \S+, since [\d: -]+\n", said)
    assert running(params, root) == []


def test_curves_and_pictures_fit_the_terminal(tmp_path: Path) -> None:
    assert spark([0.0, 1.0], 10) == "▁█"
    assert spark([1.0, 1.0, 8.0, 8.0, 4.0, 4.0], 3) == "▁█▄"
    assert len(spark(list(range(1000)), 20)) == 20
    assert spark([2.0] * 5, 3) == "▁▁▁"
    image = np.zeros((3, 2, 3), np.uint8)
    image[0, 0] = (255, 1, 2)
    save_png(tmp_path / "a.png", image)
    first, second = blocks(tmp_path / "a.png", 10)
    assert first.startswith("\x1b[38;2;255;1;2;48;2;0;0;0m▀")
    assert second.endswith("\x1b[0m")
    written = list[str]()
    in_place(iter([["a", "b"], ["c"]]), written.append, True)
    assert written == ["a\nb\n", "\x1b[2F\x1b[Jc\n"]

"""Preparing as a process: a full disk, an interruption, a kill; and training on pictures without labels."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import InputError
from atelier.files import folder_digest
from atelier.sampler import Sampler
from atelier.training.train import train
from own_pictures import picture, write_params, write_pictures

pytestmark = pytest.mark.processes
FLAT = "{side: 32, channels: 3, test_share: 0.3}"
COMMAND = [sys.executable, "-c", "from atelier.cli import main; raise SystemExit(main())"]


def atelier(root: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def workspace(tmp_path: Path, environment: dict[str, str]) -> Path:
    """Pictures prepared once, and new ones ingested since: large ones, which take a while."""
    root, source = tmp_path / "root", write_pictures(tmp_path / "pets", classes=())
    root.mkdir()
    params = load_params(write_params(root, source, FLAT))
    ingest("own", params, root, lambda message: None)
    assert atelier(root, "prepare", "own", environment=environment).returncode == 0
    large = picture(0, 1500, "JPEG")
    for number in range(150):
        (source / f"large-{number}.jpg").write_bytes(large)
    ingest("own", params, root, lambda message: None)
    return root


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(root: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[str], list[int]]:
    """Start preparing; returns once it writes, with the processes it started."""
    command = [*COMMAND, "prepare", "own", "--root", str(root)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "2"},
        start_new_session=True,
        # tests started in the background ignore SIGINT, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 180
    while not list((root / "data/prepared").glob(".own.unfinished/train-images.npy")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while not workers_of(process.pid):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    return process, workers_of(process.pid)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split(")")[-1].split()[0] != "Z"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 120
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers were left behind"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whoever_ends_it_no_worker_stays_and_the_last_good_state_does(
    workspace: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    before = folder_digest(workspace / "data/prepared/own")
    process, workers = start(workspace, environment)
    assert workers
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode != 0
    wait_until_gone(workers)
    assert folder_digest(workspace / "data/prepared/own") == before
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "atelier: interrupted"
    assert atelier(workspace, "prepare", "own", environment=environment).returncode == 0
    assert [path.name for path in (workspace / "data/prepared").iterdir()] == ["own"]
    assert folder_digest(workspace / "data/prepared/own") != before


def test_a_worker_that_is_killed_is_one_line(workspace: Path, environment: dict[str, str]) -> None:
    before = folder_digest(workspace / "data/prepared/own")
    process, workers = start(workspace, environment)
    os.kill(workers[-1], signal.SIGKILL)  # as the kernel does when memory runs out
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith("died, out of memory perhaps; lower prepare.limit_megapixels")
    assert "Traceback" not in said
    wait_until_gone(workers)
    assert folder_digest(workspace / "data/prepared/own") == before


def test_a_disk_that_fills_up_leaves_the_last_good_state(workspace: Path, environment: dict[str, str]) -> None:
    before = folder_digest(workspace / "data/prepared/own")
    result = subprocess.run(
        [*COMMAND, "prepare", "own", "--root", str(workspace)],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        check=False,
    )
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        1,
        f"atelier: {workspace}/data/prepared/own: File too large",
    )
    assert "Traceback" not in result.stderr
    assert folder_digest(workspace / "data/prepared/own") == before
    assert [path.name for path in (workspace / "data/prepared").iterdir()] == ["own"]


@pytest.mark.parametrize("model", ["cgan", "cvae"])
def test_pictures_without_labels_train_and_are_sampled(tmp_path: Path, model: str) -> None:
    source = write_pictures(tmp_path / "pets", count=120, classes=())
    recipe = f"runs.run={{dataset: own, model: {model}, kimg: 0.2, batch: 20, width: 8}}"
    params = load_params(write_params(tmp_path, source, FLAT), [recipe, "train.pictures=2"])
    ingest("own", params, tmp_path, print)
    prepare("own", params, tmp_path)
    sampler = Sampler.load(train("run", params, tmp_path, print))
    assert (sampler.class_names, sampler.config.train_labels_sha256) == ([], None)
    assert sampler.draw(5, seed=0).shape == (5, 32, 32, 3)
    with pytest.raises(InputError, match="is unconditional; leave the label out"):
        sampler.labels(5, 1)
    with pytest.raises(InputError, match=r"evaluate\.extractors: empty"):
        params.require_extractors()


def test_data_check_says_each_problem_and_fails(workspace: Path, environment: dict[str, str]) -> None:
    shutil.rmtree(workspace / "data/raw/own")
    result = atelier(workspace, "data", "check", "own", environment=environment)
    assert result.returncode == 1
    assert "left-out.csv: missing" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("atelier: own: 4 problems; mend them with")

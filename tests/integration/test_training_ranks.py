"""Trainings of several processes, started as torchrun and Kubeflow start them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from subprocess import Popen

import pytest

from atelier.files import folder_digest
from small_trainings import Training, children, finish, free_port, images_seen, make_workspace, torchrun

pytestmark = pytest.mark.processes


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_two_nodes_train_to_the_weights_of_two_ranks(tmp_path: Path) -> None:
    one_node = make_workspace(tmp_path / "one-node")
    nodes = [tmp_path / "first-node", tmp_path / "second-node"]
    for node in nodes:
        shutil.copytree(one_node, node)
    before = files(nodes[1])
    kimg = "--set=runs.gan.kimg=0.96"
    # what Kubeflow Trainer sets for a TrainJob of two nodes with one process each
    job = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(free_port()),
    }
    agents = [torchrun(node, "gan", kimg, PET_NODE_RANK=str(rank), **job) for rank, node in enumerate(nodes)]
    Training(one_node, "gan", kimg, ranks=2).finish()
    for agent in agents:
        finish(agent)
    assert folder_digest(nodes[0] / "models" / "gan") == folder_digest(one_node / "models" / "gan")
    assert files(nodes[1]) == before  # one writer


def test_torchrun_starts_dead_ranks_again_and_stops_all_together(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    endless = "--set=runs.dense.kimg=1000"
    # --standalone takes a free port; the short interval is that of watching the ranks
    launcher = ("--nproc-per-node=2", "--max-restarts=1", "--standalone", "--monitor-interval=0.1")
    process = torchrun(root, "dense", endless, arguments=launcher)
    for number in (signal.SIGKILL, signal.SIGTERM):  # one rank dies, both are started again; one is told, both stop
        wait_for_checkpoint(root, "dense", process, beyond=images_seen(root, "dense"))
        os.kill(children(process)[1], number)
    said = finish(process, expected=1)  # torchrun's own; those of the ranks are in its report
    assert said.count("going on from") == 1
    assert said.count("SIGTERM: checkpoint saved; the same command goes on from it") == 1
    assert said.count("exitcode  : 143") == 2

    reached = images_seen(root, "dense")
    said = Training(root, "dense", endless).finish([2])
    assert said.splitlines()[-1].startswith(f"atelier: {root}/checkpoints/dense: going on here would not be exact")
    assert "world_size: 2 → 1" in said
    assert images_seen(root, "dense") == reached


def wait_for_checkpoint(root: Path, run: str, process: Popen[str], beyond: int) -> None:
    while images_seen(root, run) <= beyond:
        assert process.poll() is None, "ended before it was killed: " + process.communicate()[0]
        time.sleep(0.01)


def test_loss_that_is_not_finite_stops_all_ranks_with_one_line(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    said = Training(root, "vae", "--set=runs.vae.lr=1e12", "--set=runs.vae.precision=fp32", ranks=2).finish([1, 1])
    # on a busy machine others, of progress or of figures that wait for MLflow, come before it
    (line,) = (line for line in said.splitlines() if line.startswith("atelier: "))
    assert "is not finite at" in line
    assert "no checkpoint had been written" in line
    assert not (root / "models").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_does_not_wait_for_a_server_that_never_answers(tmp_path: Path, ranks: int) -> None:
    root = make_workspace(tmp_path / "workspace")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        endless = "--set=runs.gan.kimg=1000"
        training = Training(root, "gan", endless, ranks=ranks, MLFLOW_TRACKING_URI=uri)
        training.wait_for_checkpoint(beyond=0)
        reached = images_seen(root, "gan")
        training.ranks[-1].terminate()
        said = training.finish([143] * ranks, within_seconds=60)
    assert said.count("SIGTERM: checkpoint saved; the same command goes on from it") == 1
    assert "MLflow has not taken all figures" in said
    assert images_seen(root, "gan") > reached

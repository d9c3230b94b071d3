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
from safetensors.torch import load_file

from atelier.config.records import ModelConfig
from atelier.files import digest, folder_digest
from ports import free_port
from small_trainings import Kill, Training, children, finish, images_seen, make_workspace, torchrun

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


def test_another_number_of_ranks_goes_on_when_it_is_allowed(tmp_path: Path) -> None:
    options = ("--set=runs.gan.kimg=0.96", "--set=runs.gan.precision=fp32", "--set=train.checkpoint_seconds=1e-9")
    alone, root = make_workspace(tmp_path / "alone"), make_workspace(tmp_path / "workspace")
    undisturbed = Training(alone, "gan", *options)
    Training(root, "gan", *options, ranks=2, kill=Kill(120, signal.SIGTERM)).finish([143, 143])
    said = Training(root, "gan", *options, "--allow-other-world-size").finish()
    undisturbed.finish()
    assert "a checkpoint of 2 ranks, gone on with by 1: sums round otherwise from here on" in said
    config = ModelConfig.read(root / "models/gan/config.json", "")
    assert (config.world_size, config.former_world_sizes) == (1, [2])
    # the same data and noise; what differs are roundings, and what some steps make of them
    of_alone, of_both = (load_file(one / "models/gan/sampler.safetensors") for one in (alone, root))
    for name, weights in of_alone.items():
        assert (weights - of_both[name]).float().norm() <= 0.1 * weights.float().norm(), name


def test_a_batch_per_rank_grows_with_the_ranks(tmp_path: Path) -> None:
    one, two = make_workspace(tmp_path / "one"), make_workspace(tmp_path / "two")
    kimg = "--set=runs.gan.kimg=0.96"
    Training(one, "gan", kimg, "--set=runs.gan.batch=64", ranks=2).finish()
    Training(two, "gan", kimg, "--set=runs.gan.batch_per_rank=32", ranks=2).finish()
    folders = [root / "models" / "gan" for root in (one, two)]
    assert digest(folders[0] / "sampler.safetensors") == digest(folders[1] / "sampler.safetensors")
    assert ModelConfig.read(folders[1] / "config.json", "").recipe.batch == 64


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

"""Trainings of a few seconds: a workspace of made-up images, and real `atelier train` processes in it, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any, Literal

import numpy as np
from ruamel.yaml import YAML

from atelier.config.records import DataCard, SplitCard
from atelier.data.writer import SplitWriter
from atelier.journal import read_journal
from killing import kill_at
from ports import free_port

HANG_SECONDS = 180
PARAMS: dict[str, Any] = {
    "datasets": ["mnist"],
    "runs": {
        "gan": {"dataset": "mnist", "model": "cgan", "kimg": 2.4, "batch": 32, "width": 8, "latent": 8},
        "vae": {"dataset": "mnist", "model": "cvae", "kimg": 3.2, "batch": 32, "width": 8, "latent": 4},
        "dense": {"dataset": "mnist", "model": "vanilla", "kimg": 1.92, "batch": 32, "width": 32, "latent": 8},
    },
    "train": {"tick_kimg": 0.3, "pictures": 4, "checkpoint_seconds": 0.2, "checkpoints_kept": 2},
}


def make_workspace(root: Path, images: int = 500) -> Path:
    """Prepared data and params.yaml: blurred blobs whose place says the class, 28x28x1."""
    folder = root / "data" / "prepared" / "mnist"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    splits: dict[Literal["train", "test"], SplitCard] = {}
    counts: dict[Literal["train", "test"], int] = {"train": images, "test": 100}
    for split, count in counts.items():
        labels = np.arange(count) % 10
        centre = 5 + 2 * labels[:, None, None] + generator.normal(size=(count, 1, 1))
        blobs = 255 * np.exp(-((rows - centre) ** 2 + (columns - 14) ** 2) / 20)
        writer = SplitWriter(folder, split, (28, 28, 1), 10)
        writer.add(blobs.astype(np.uint8)[..., None], labels)
        splits[split] = writer.close()
    write_card(folder, splits)
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(PARAMS, file)
    return root


def write_card(folder: Path, splits: dict[Literal["train", "test"], SplitCard]) -> None:
    """The card of 28x28x1 images of ten classes that come from nowhere."""
    DataCard(
        dataset="mnist",
        title="MNIST",
        source="a test",
        licence="none",
        height=28,
        width=28,
        channels=1,
        class_names=list("0123456789"),
        raw_sha256={},
        splits=splits,
        contact_sheet_sha256="0" * 64,
        left_out=[],
        unused=0,
    ).write(folder / "card.json")


@dataclass(frozen=True)
class Kill:
    """A signal to a rank, at an event of the first one, counted from 1 or by its path: see `killing`."""

    event: int | str
    signal: int
    rank: int = 0


class Training:
    """A running `atelier train RUN`: a process a rank, each a real one that can be killed.

    They are forked from a process that has imported everything: a training of a second needs no ten to start.

    Args:
        root: the workspace.
        run: to train.
        options: of the command.
        ranks: how many.
        log: the ending of the file, beside `root`, that holds what they say.
        kill: at which event of the first rank which rank gets which signal.
        environment: variables of all ranks.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        *options: str,
        ranks: int = 1,
        log: str = "log",
        kill: Kill | None = None,
        **environment: str,
    ) -> None:
        self.root, self.run = root, run
        variables = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        variables |= {"TMPDIR": str(root.parent), "MLFLOW_DISABLE_TELEMETRY": "true"} | environment
        self.log = root.with_name(f"{root.name}.{log}")
        self.log.write_text("")
        if ranks > 1:
            variables |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        arguments = ["train", run, "--root", str(root), *options]
        self.ranks = list[BaseProcess]()
        for rank in reversed(range(ranks)):  # the first one last: it is told the process of its victim
            own = {"RANK": str(rank), "LOCAL_RANK": "0"} if ranks > 1 else {}
            at: tuple[int | str, int, str, int] | None = None
            if kill and rank == 0:
                at = kill.event, kill.signal, str(root), self.ranks[kill.rank - 1].pid or 0 if kill.rank else 0
            self.ranks.insert(0, PRELOADED.Process(target=atelier, args=(arguments, variables | own, self.log, at)))
            self.ranks[0].start()

    def wait_for_checkpoint(self, beyond: int) -> None:
        """Wait until there is a checkpoint of more than `beyond` images."""
        while images_seen(self.root, self.run) <= beyond:
            assert all(rank.is_alive() for rank in self.ranks), "ended before it was killed: " + self.log.read_text()
            time.sleep(0.005)

    def finish(self, expected: list[int] | None = None, within_seconds: float = HANG_SECONDS) -> str:
        """Wait for all ranks and return what they said; each must end with the exit code expected of it, or 0."""
        for rank in self.ranks:
            rank.join(within_seconds)
        said = self.log.read_text()
        assert [rank.exitcode for rank in self.ranks] == (expected or [0] * len(self.ranks)), said
        return said


PRELOADED = multiprocessing.get_context("forkserver")
PRELOADED.set_forkserver_preload(
    [
        *("atelier.cli", "atelier.training.train", "atelier.training.gan", "atelier.training.vae", "torch._dynamo"),
        *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    ]
)


def atelier(
    arguments: list[str], environment: dict[str, str], log: Path, kill: tuple[int | str, int, str, int] | None = None
) -> None:
    """What the command does, in a forked process: its environment, its output, its exit code."""
    import torch

    from atelier.cli import main

    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if kill:
        kill_at(*kill)
    sys.argv = ["atelier", *arguments]
    sys.exit(main())


def become_rank(rank: int, world_size: int, port: int) -> None:
    """Let this process be one of `world_size`, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def torchrun(root: Path, run: str, *options: str, arguments: tuple[str, ...] = (), **environment: str) -> Popen[str]:
    """Start `torchrun ARGUMENTS -m atelier train RUN`, as a user or, by PET_* variables, Kubeflow does."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    command += ["-m", "atelier", "train", run, "--root", str(root), *options]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    variables |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(root.parent)} | environment
    return Popen(command, env=variables, stdout=PIPE, stderr=STDOUT, text=True)


def finish(process: Popen[str], expected: int = 0) -> str:
    """Wait for a process and return what it said; its exit code must be the expected one."""
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == expected, output
    return output


def children(process: Popen[str]) -> list[int]:
    """Process ids of the ranks that a torchrun started."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def newest_checkpoint(root: Path, run: str) -> Path | None:
    """The checkpoint that a training would go on from."""
    return max((root / "checkpoints" / run).glob("*.checkpoint"), default=None)


def images_seen(root: Path, run: str) -> int:
    """How many images the newest checkpoint has seen; 0 if there is none."""
    newest = newest_checkpoint(root, run)
    return int(newest.stem) if newest else 0


def figures_in_mlflow(root: Path, uri: str | None = None) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Status and the history of each figure of the only MLflow run there is."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{root.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("atelier")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    return run.info.status, {
        name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
        for name in names
    }


def figures_in_journal(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The same, from a journal: what MLflow has of it."""
    lines = read_journal(path)
    names = [name for name in lines[0] if name != "step"]
    return {f"train/{name}": [(round(line["kimg"] * 1000), line[name]) for line in lines] for name in names}

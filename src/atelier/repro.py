"""`atelier repro --jobs N`: what `dvc repro` does, with stages that do not wait for each other side by side.

DVC runs and records each stage; this decides when, and leaves `dvc.lock` as `dvc repro` writes it. `python -m
atelier.repro STAGE` is one of those stages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, InputError
from atelier.notify import FAILURE_IS_TOLD
from atelier.processes import Children, share_of_machine

BUSY_SECONDS, LOOK_SECONDS = 60.0, 0.5


def repro(
    targets: Sequence[str], jobs: int, cards: Sequence[str], root: Path, say: Callable[[str], object]
) -> list[str]:
    """Bring the stages of a workspace up to date, some at the same time; returns the names of those that ran.

    Each gets an equal share of the processor cores (`OMP_NUM_THREADS`, where the environment does not set it) and one
    of the cards. When one fails, those that run are waited for and no other is started.

    Args:
        targets: stages, with all that they need; every stage if empty.
        jobs: how many may run at a time.
        cards: `CUDA_VISIBLE_DEVICES` of one stage each; the environment's if empty.
        root: the workspace.
        say: told each line of the stages' standard error, behind the stage's name.

    Raises:
        InputError: if there is no pipeline, or no such stage.
        AtelierError: if a stage fails.
        Terminated: if SIGTERM was received; the stages were told.
    """
    with _pipeline(targets, root) as pipeline:
        return asyncio.run(_Running(pipeline, jobs, cards, say).to_the_end())


@dataclass
class _Pipeline:
    """DVC's view of a workspace.

    Attributes:
        repository: DVC's.
        stages: DVC's objects, by name, in the order in which `dvc repro` runs them.
        needs: the names of the stages whose outputs each depends on.
        recorded: the names of those in `dvc.lock`.
    """

    repository: Any
    stages: dict[str, Any]
    needs: dict[str, set[str]]
    recorded: frozenset[str]

    def is_stale(self, name: str) -> bool:
        """Whether `dvc repro` would run or restore a stage whose dependencies are up to date.

        It is so of one that another command is at work on, too: its own process waits for that.
        """
        from dvc.lock import LockError

        try:
            with self.repository.lock:
                return bool(self.stages[name].changed())
        except LockError:
            return True


@contextlib.contextmanager
def _pipeline(targets: Sequence[str], root: Path) -> Iterator[_Pipeline]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
    from dvc.stage.exceptions import StageNotFound
    from dvc.utils.serialize import load_yaml

    if not (root / "dvc.yaml").is_file():
        raise InputError(f"{root / 'dvc.yaml'}: missing; give --root of a workspace, 'atelier init' makes one")
    try:
        with contextlib.chdir(root), Repo(_wait_for_lock=True) as repository:
            graph = get_active_graph(repository.index.graph)
            steps = plan_repro(graph, collect_stages(repository, targets or ["dvc.yaml"]))
            needs = {step.addressing: {one.addressing for one in graph.successors(step)} for step in steps}
            recorded = load_yaml("dvc.lock").get("stages", {}) if Path("dvc.lock").is_file() else {}
            yield _Pipeline(repository, {step.addressing: step for step in steps}, needs, frozenset(recorded))
    except StageNotFound as error:
        raise InputError(f"dvc.yaml: {error}") from None
    except DvcException as error:
        raise AtelierError(f"DVC in {root}: {error}") from None


@dataclass
class _Running:
    """Stages that run, are done, or wait."""

    pipeline: _Pipeline
    jobs: int
    cards: Sequence[str]
    say: Callable[[str], object]
    children: Children = field(init=False)
    slots: dict[str, int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    ran: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # what each said last

    async def to_the_end(self) -> list[str]:
        """Start each stage once those that it needs are done; returns the names of those that ran."""
        self.children = Children()
        tasks = set[asyncio.Task[None]]()
        waiting = list(self.pipeline.stages)
        while True:
            for name in self._ready(waiting):
                waiting.remove(name)
                self.slots[name] = min(set(range(self.jobs)) - set(self.slots.values()))
                tasks.add(asyncio.create_task(self._run(name)))
            if not tasks:
                break
            ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        if self.ran:
            self._order_lock()
        self.children.raise_for_signal("start it again and it goes on")
        if self.failed:
            left = f"; not run for that: {', '.join(waiting)}" if waiting else ""
            raise AtelierError("; ".join(f"{name} failed: {said}" for name, said in self.failed.items()) + left)
        return self.ran

    def _ready(self, waiting: list[str]) -> list[str]:
        """The stages to start now; those that are up to date count as done, and so do not wait."""
        ready = list[str]()
        again = not (self.failed or self.children.signal)
        while again:
            again = False
            for name in list(waiting):
                if (
                    name in ready
                    or len(self.slots) + len(ready) >= self.jobs
                    or not self.pipeline.needs[name] <= self.done
                ):
                    continue
                if self.pipeline.is_stale(name):
                    ready.append(name)
                else:
                    waiting.remove(name)
                    self.done.add(name)
                    again = True  # for those before it in the list that need it
        return ready

    async def _run(self, name: str) -> None:
        environment = share_of_machine(self.jobs, self.cards, self.slots[name]) | {FAILURE_IS_TOLD: "true"}
        process = await self.children.start("atelier.repro", name, env=environment, stderr=asyncio.subprocess.PIPE)
        # DVC's own line comes after what the stage says
        code, last = await self.children.follow(process, name, self.say, unless="failed to run: ")
        del self.slots[name]
        if code:
            self.failed[name] = last
        else:
            self.ran.append(name)
            self.done.add(name)

    def _order_lock(self) -> None:
        """Put the new stages of `dvc.lock` in the order of the pipeline, not in that in which they happened to end."""
        from dvc.utils.serialize import modify_yaml

        with self.pipeline.repository.lock, modify_yaml("dvc.lock") as content:
            recorded = content["stages"]
            for name in self.pipeline.stages:
                if name in recorded and name not in self.pipeline.recorded:
                    recorded.move_to_end(name)


def _run_stage(name: str) -> None:
    """Have DVC run and record one stage of the workspace in this folder; SIGTERM is handed on to its command.

    What an earlier command started and a kill left behind, such as a training that saves, is waited for.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    is_told = False

    def hand_on(number: int, _: object) -> None:
        nonlocal is_told
        is_told = True
        signal.signal(number, lambda *_: None)
        os.killpg(0, number)

    signal.signal(signal.SIGTERM, hand_on)
    give_up = time.monotonic() + BUSY_SECONDS
    is_said = False
    while True:
        try:
            with Repo(_wait_for_lock=True) as repository:
                repository.reproduce(name, single_item=True)
            return
        except DvcException as error:
            cause = error.__cause__ or error
            if not isinstance(cause, LockError) or is_told or time.monotonic() > give_up:
                sys.exit(str(cause))
        if not is_said:
            print("waiting for another command that works on the same files", file=sys.stderr, flush=True)
            is_said = True
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    _run_stage(sys.argv[1])

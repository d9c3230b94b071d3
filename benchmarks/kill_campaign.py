"""Kills at random moments, each followed by the same command: `python benchmarks/kill_campaign.py --tries 300`.

Every stage, `promote` and `dvc repro`, in one process and in two ranks, get SIGKILL, SIGTERM or SIGINT, at a random
moment or right before a random change of a file. The same command afterwards must succeed and leave what an undisturbed
one leaves, byte for byte, in files and in MLflow; and no process, lock, half-written file or run that is RUNNING.

What a try does follows from the seed and its number: `--only 17` repeats one. Trainings are forked from a process that
has imported everything, as in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

import small_trainings  # noqa: E402
from killing import kill_at  # noqa: E402
from own_pictures import write_pictures  # noqa: E402
from ports import free_port  # noqa: E402

PARAMS = """
datasets: [shapes]
runs:
  gan: {dataset: shapes, model: cgan, kimg: 0.8, batch: 20, width: 8, latent: 8, ema_half_life_kimg: 0.1}
  vae: {dataset: shapes, model: cvae, kimg: 0.8, batch: 20, width: 8, latent: 4}
ingest: {paths: {shapes: pictures}}
prepare: {sets: {shapes: {side: 28, channels: 1, classes: [cat, dog], test_share: 0.3}}}
reference: {classifier_kimg: 0.5}
train: {tick_kimg: 0.1, pictures: 4, checkpoint_seconds: 0.05}
evaluate:
  {samples: 100, draws: 2, manifold_samples: 50, memorisation_samples: 20, accuracy_kimg: 0, likelihood_images: 10}
promote: {at_most: {fd_classifier: 1000000}, better: []}
"""
# of DVC's processes a training counts its events
SITE = """
import os, sys
from pathlib import Path
if "CAMPAIGN_KILL" in os.environ and b"train" in Path("/proc/self/cmdline").read_bytes().split(b"\\0"):
    sys.path.append(os.environ["CAMPAIGN_TESTS"])
    from killing import kill_at
    event, number, below = os.environ["CAMPAIGN_KILL"].split(" ", 2)
    kill_at(int(event), int(number), below)
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HANG_SECONDS = 600
STOPPING_SECONDS = 20  # as a rank that waits for a dead one would not end by itself; torchrun gives it 30
ENDING_SECONDS = 60  # children whose parent was killed see it and end
REFUSED = re.compile(r"atelier: .*: process [0-9]+ on .* is writing it|Unable to acquire lock|is busy")
LEFTOVER = re.compile(r"\.(lock|partial|removed|old|copy|part)$")
# wall-clock times, names of MLflow's runs and versions, and what DVC keeps for itself
OF_ONE_EXECUTION = re.compile(r"^(runs/|reports/local\.js|mlflow\.db|mlartifacts/|\.dvc/|\.git/|src/)")


@dataclass(frozen=True)
class Action:
    """A command, where it starts, and how often it is tried."""

    command: tuple[str, ...]
    after: str  # the action whose result it starts from
    share: int
    ranks: int = 1


DVC = ("dvc",)  # `dvc repro`, a process of its own, whose stages are processes again
ACTIONS = {
    "ingest": Action(("ingest", "shapes"), "", 20),
    "prepare": Action(("prepare", "shapes"), "ingest", 25),
    "reference": Action(("reference", "shapes"), "prepare", 20),
    "train without a store": Action(("train", "gan"), "reference", 10),
    "open a store": Action(("runs", "close"), "reference", 5),
    "train": Action(("train", "gan"), "open a store", 40),
    "train over two ranks": Action(("train", "gan"), "open a store", 30, ranks=2),
    "train a VAE": Action(("train", "vae"), "train", 20),
    "evaluate": Action(("evaluate", "gan"), "train a VAE", 15),
    "evaluate over two ranks": Action(("evaluate", "gan"), "train a VAE", 15, ranks=2),
    "evaluate a VAE": Action(("evaluate", "vae"), "evaluate", 10),
    "register": Action(("register", "gan"), "evaluate a VAE", 25),
    "register a VAE": Action(("register", "vae"), "register", 5),
    "promote": Action(("promote", "gan"), "register a VAE", 20),
    "compare": Action(("compare",), "promote", 10),
    "train again": Action(("train", "gan", "--set", "runs.gan.seed=1"), "compare", 25),
    "evaluate again": Action(("evaluate", "gan", "--set", "evaluate.samples=110"), "compare", 10),
    "dvc repro reference": Action((*DVC, "repro", "reference"), "", 0),
    "dvc repro": Action((*DVC, "repro"), "dvc repro reference", 12),
}


@dataclass
class Undisturbed:
    """What a command does when nobody disturbs it."""

    seconds: float
    events: list[int]  # of each rank
    files: dict[str, str]
    store: dict[str, Any]


@dataclass
class Campaign:
    """The folders of a campaign: the workspace that all commands run in, and its states."""

    base: Path
    known: dict[str, Undisturbed] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.base / "workspace"

    def put_back(self, name: str) -> None:
        """Make the workspace what it was after an action."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.base / "states" / (name or "beginning"), self.root, symlinks=True)

    def prepare(self, name: str) -> Undisturbed:
        """Run an action and all before it, once, undisturbed."""
        if name not in self.known:
            action = ACTIONS[name]
            if action.after:
                self.prepare(action.after)
            self.put_back(action.after)
            if action.command[:1] == DVC and not action.after:
                self.make_repository()
            start = time.monotonic()
            codes, events = self.run(action, None)
            assert codes == [0] * action.ranks, (name, self.said())
            self.known[name] = Undisturbed(time.monotonic() - start, events, files(self.root), store(self.root))
            assert not leftovers(self.root), (name, leftovers(self.root))
            shutil.copytree(self.root, self.base / "states" / name, symlinks=True)
        return self.known[name]

    def make_repository(self) -> None:
        """Make the workspace a checkout of the project."""
        checkout = self.base / "checkout"
        subprocess.run(["git", "clone", "--quiet", "--shared", str(PROJECT), str(checkout)], check=True)
        (checkout / "dvc.lock").unlink()
        shutil.copytree(self.root, checkout, dirs_exist_ok=True)
        shutil.rmtree(self.root)
        checkout.rename(self.root)

    def run(self, action: Action, kill: Kill | None) -> tuple[list[int | None], list[int]]:
        """Run a command in forked processes, a rank each; returns their exit codes, and how many events each had."""
        if action.command[:1] == DVC:
            return self.run_dvc(action, kill)
        log = self.base / "command.log"
        log.write_text("")
        counts = [self.base / f"events-{rank}" for rank in range(action.ranks)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        environment |= {"TMPDIR": str(self.base / "tmp"), "MLFLOW_DISABLE_TELEMETRY": "true"}
        if action.ranks > 1:
            port = str(free_port())
            environment |= {"WORLD_SIZE": str(action.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = [*action.command, "--root", str(self.root)]
        processes = []
        for rank in range(action.ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": "0"} if action.ranks > 1 else {}
            event = (kill.event, kill.signal) if kill and kill.event and kill.victim == rank else (0, 0)
            processes.append(
                small_trainings.PRELOADED.Process(
                    target=_command, args=(arguments, environment | own, log, *event, counts[rank])
                )
            )
        for process in processes:
            process.start()
        if kill and not kill.event:
            time.sleep(kill.seconds)
            victim = processes[kill.victim].pid
            assert victim is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, kill.signal)
        deadline = time.monotonic() + HANG_SECONDS
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes):  # a launcher stops the others then
                deadline = min(deadline, time.monotonic() + STOPPING_SECONDS)
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.05)
        self.sessions = [process.pid or 0 for process in processes]
        return [process.exitcode for process in processes], [int(c.read_text()) if c.exists() else 0 for c in counts]

    def run_dvc(self, action: Action, kill: Kill | None) -> tuple[list[int | None], list[int]]:
        """Run DVC and the stages that it starts; a kill is of DVC alone, of its training, or of all together."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.base / 'site'}{os.pathsep}{PROJECT / 'src'}",
            "TMPDIR": str(self.base / "tmp"),
            "DVC_NO_ANALYTICS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if kill and kill.event:
            environment["CAMPAIGN_TESTS"] = str(PROJECT / "tests")
            environment["CAMPAIGN_KILL"] = f"{kill.event} {kill.signal} {self.root}"
        with (self.base / "command.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *action.command],
                cwd=self.root,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self.sessions = [process.pid]
            if kill and not kill.event:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(kill.seconds)
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if kill.victim else os.kill)(process.pid, kill.signal)
            return [process.wait(HANG_SECONDS)], [400]

    def said(self) -> str:
        return (self.base / "command.log").read_text()


@dataclass(frozen=True)
class Kill:
    """A signal to one rank, at its `event` counted from 1, or `seconds` after its start."""

    signal: int
    victim: int
    event: int = 0
    seconds: float = 0.0


def _command(
    arguments: list[str], environment: dict[str, str], log: Path, event: int, number: int, counted: Path
) -> None:
    """`atelier ARGUMENTS` in a session of its own."""
    os.setsid()
    count = kill_at(event, number, environment["TMPDIR"].removesuffix("tmp"))
    try:
        small_trainings.atelier(arguments, environment, log)
    finally:
        counted.write_text(str(count()))


def files(root: Path) -> dict[str, str]:
    """Digest of each file that two equal executions leave equal."""
    names = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    return {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest()[:16]
        for name in names
        if not OF_ONE_EXECUTION.match(name)
    }


def store(root: Path) -> dict[str, Any]:
    """What MLflow knows: versions, aliases, and the figures of each run that ended well."""
    database = root / "mlflow.db"
    if not database.is_file():
        return {}
    with contextlib.closing(sqlite3.connect(database)) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            try:
                return sorted(connection.execute(query).fetchall())
            except sqlite3.OperationalError:  # no such table: a store that nothing has opened
                return []

        figures: dict[str, set[tuple[Any, ...]]] = {}
        query = "select r.run_uuid, m.key, m.step, m.value from runs r join metrics m using (run_uuid)"
        for run, *figure in rows(f"{query} where r.status = 'FINISHED' and m.key not like 'system/%'"):
            figures.setdefault(run, set()).add(tuple(figure))
        return {
            "running": rows("select name from runs where status = 'RUNNING'"),
            "versions": rows("select name, version, current_stage from model_versions"),
            "aliases": rows("select name, alias, version from registered_model_aliases"),
            "figures": sorted({json.dumps(sorted(values)) for values in figures.values()}),
        }


def leftovers(root: Path) -> list[str]:
    """Locks and halves of files."""
    names = (path.relative_to(root).as_posix() for path in root.rglob(".*") if LEFTOVER.search(path.name))
    return sorted(name for name in names if not OF_ONE_EXECUTION.match(name))


def alive(sessions: list[int]) -> list[str]:
    """The processes of some sessions."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions and fields[0] != "Z":
                found.append(f"{folder.name} {(folder / 'cmdline').read_text()[:80]!r}")
    return found


def wait_for_the_end(sessions: list[int], seconds: float = ENDING_SECONDS) -> list[str]:
    """The processes that do not end."""
    deadline = time.monotonic() + seconds
    while (found := alive(sessions)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def differing(undisturbed: Undisturbed, root: Path) -> list[str]:
    """What is another than it would be without the kill."""
    found = files(root)
    problems = [f"{name} differs" for name, digest in undisturbed.files.items() if found.get(name) != digest]
    problems += [f"{name} is left over" for name in found if name not in undisturbed.files]
    problems += [f"{name} is left over" for name in leftovers(root)]
    problems += [
        f"MLflow's {what}: {value}" for what, value in store(root).items() if value != undisturbed.store.get(what)
    ]
    return problems


def tries(campaign: Campaign, seed: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Kill, run again, compare."""
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        name = chance.choices(list(ACTIONS), [action.share for action in ACTIONS.values()])[0]
        action, undisturbed = ACTIONS[name], campaign.prepare(name)
        is_dvc = action.command[:1] == DVC
        victim, number_of_signal = chance.randrange(2 if is_dvc else action.ranks), chance.choice(SIGNALS)
        moment = chance.random()
        if chance.random() < (0.4 if is_dvc else 0.7):
            kill = Kill(number_of_signal, victim, event=1 + int(moment * undisturbed.events[0 if is_dvc else victim]))
        else:
            kill = Kill(number_of_signal, victim, seconds=moment * undisturbed.seconds)
        campaign.put_back(action.after)
        codes, _ = campaign.run(action, kill)
        killed, sessions = codes != [0] * action.ranks, campaign.sessions
        said = campaign.said()
        again, _ = campaign.run(action, None)
        if is_dvc and again != [0] and REFUSED.search(campaign.said()):  # a training outlived its DVC
            wait_for_the_end(sessions, HANG_SECONDS)
            again, _ = campaign.run(action, None)
        problems = [] if again == [0] * action.ranks else [f"exit codes {again}: {campaign.said()[-600:]}"]
        if any("Traceback" in text for text in (said, campaign.said())):
            problems.append(f"a traceback: {said[-600:]} {campaign.said()[-600:]}")
        problems += [f"process {process} lives on" for process in wait_for_the_end(sessions + campaign.sessions)]
        problems += differing(undisturbed, campaign.root)
        yield {
            "try": number,
            "action": name,
            "signal": signal.Signals(number_of_signal).name,
            "victim": victim,
            "at": f"event {kill.event} of {undisturbed.events[victim % len(undisturbed.events)]}"
            if kill.event
            else f"{kill.seconds:.2f} s",
            "exit codes": codes,
            "killed": killed,
            "problems": problems,
        }


def in_this_process(seed: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Make the states of a workspace and try, one try after the other."""
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        (campaign.base / "tmp").mkdir()
        beginning = campaign.base / "states" / "beginning"
        write_pictures(beginning / "pictures", 160)
        (beginning / "params.yaml").write_text(PARAMS)
        (campaign.base / "site").mkdir()
        (campaign.base / "site" / "sitecustomize.py").write_text(SITE)
        imports = small_trainings.PRELOADED.Process(target=int)  # the first command does not wait for the imports
        imports.start()
        imports.join()
        yield from tries(campaign, seed, numbers)


def in_processes(seed: int, numbers: Sequence[int], jobs: int) -> Iterator[dict[str, Any]]:
    """Try in several processes, each with states of its own and every so-manieth number."""
    command = [sys.executable, __file__, "--seed", str(seed), "--only"]
    shares = [[*command, *map(str, numbers[job::jobs])] for job in range(jobs) if numbers[job::jobs]]
    processes = [subprocess.Popen(share, stdout=subprocess.PIPE, text=True) for share in shares]
    with ThreadPoolExecutor(len(processes)) as pool:
        said: Queue[str | None] = Queue()

        def listen(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                said.put(line)
            said.put(None)

        for process in processes:
            pool.submit(listen, process)
        for _ in processes:
            while (line := said.get()) is not None:
                if line.startswith('{"try"'):
                    yield json.loads(line)
    if bad := [process.returncode for process in processes if process.wait() not in (0, 1)]:
        raise SystemExit(f"a process of the campaign ended with {bad[0]}")


def options(description: str | None) -> argparse.ArgumentParser:
    """What every campaign is asked with."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of tries")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    return parser


def conclude(
    arguments: argparse.Namespace, results: list[dict[str, Any]], start: float, figures: dict[str, Any]
) -> None:
    """Write and tell what a campaign found, and exit with 1 if any try failed."""
    failed = [result for result in results if result["problems"]]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    summary = {
        "seed": arguments.seed,
        "tries": len(results),
        "failures": failed,
        **figures,
        "minutes": round((time.monotonic() - start) / 60),
        "commit": commit.stdout.strip(),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({key: value for key, value in summary.items() if key != "failures"}), f"{len(failed)} failures")
    sys.exit(bool(failed))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes that try at the same time")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the processes that import torch
    start, results = time.monotonic(), []
    numbers = arguments.only or range(arguments.tries)
    made = (
        in_processes(arguments.seed, numbers, arguments.jobs)
        if arguments.jobs > 1
        else in_this_process(arguments.seed, numbers)
    )
    for result in made:
        results.append(result)
        print(json.dumps(result), flush=True)
    by_action = Counter(result["action"] for result in results)
    conclude(
        arguments,
        results,
        start,
        {"ended by the signal": sum(r["killed"] for r in results), "by action": dict(sorted(by_action.items()))},
    )


if __name__ == "__main__":
    main()

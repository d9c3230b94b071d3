"""Processes started by this one, which end with it and say in one line what failed; and trying again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from atelier.errors import AtelierError, Terminated

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

# What `git rev-parse --local-env-vars` lists (hooks and `git rebase --exec` set it) and how git reads paths: either
# would turn a command on one checkout into one on another. Left in place: who commits, how git reaches a server, and
# settings by GIT_CONFIG_COUNT, which containers declare a checkout safe with.
GIT_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_NAMESPACE"),
    *("GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_CONFIG"),
    *("GIT_CONFIG_PARAMETERS", "GIT_INTERNAL_SUPER_PREFIX", "GIT_EXTERNAL_DIFF"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)
# What DVC tells the stages that it runs, torchrun its ranks and MLflow the process of a run
OTHER_VARIABLES = (
    *("DVC_ROOT", "DVC_STAGE", "DVC_DAEMON", "DVC_CHECKPOINT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    "MLFLOW_RUN_ID",
)
PREFIXES = ("GIT_TRACE", "TORCHELASTIC_")


class CommandMissing(AtelierError):
    """The program is not on this machine; one that is there and fails is an `AtelierError` like any other."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what ties a child to another checkout, pipeline, training or run."""
    dropped = {*GIT_VARIABLES, *OTHER_VARIABLES}
    return {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith(PREFIXES)}


def end_with(parent: int) -> Callable[[], None]:
    """What a child calls first (`preexec_fn`) so that Linux ends it with SIGTERM when `parent`, a pid, ends.

    To Linux the parent is the thread that starts the child: it has to wait for it. Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up here: after a fork no library must be loaded

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended just before
            os._exit(1)

    return arrange


def processors() -> int:
    """How many this process is to use: `OMP_NUM_THREADS`, or without it all that it may run on; macOS does not say."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdecimal() and int(said) else _all_processors()


def _all_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_machine(jobs: int, cards: Sequence[str] = (), slot: int = 0) -> dict[str, str]:
    """This process's environment for one of `jobs` children that run at the same time.

    It says how many threads a child has, where nobody has said it, and which of the cards is its own; and commands
    beside this Python are found by it.
    """
    card = {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]} if cards else {}
    return {"OMP_NUM_THREADS": str(max(1, _all_processors() // jobs))} | with_own_commands() | card


def with_own_commands() -> dict[str, str]:
    """This process's environment, with the commands beside this Python on the PATH: uvx and pipx put them on none."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    }


class Children:
    """Processes that run at the same time, and are told SIGTERM when this one gets SIGINT or SIGTERM, or ends.

    To be made in an event loop.

    Attributes:
        signal: that this process got; 0 until then.
    """

    def __init__(self) -> None:
        import asyncio

        self.signal = 0
        self._running = set[asyncio.subprocess.Process]()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)

    async def start(
        self, *command: str, env: Mapping[str, str], stdout: IO[bytes] | None = None, stderr: IO[bytes] | int
    ) -> asyncio.subprocess.Process:
        """Start a process of Python with these arguments, in a session of its own: Ctrl-C is for this one alone."""
        import asyncio

        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )
        self._running.add(child)
        return child

    async def wait(self, child: asyncio.subprocess.Process) -> int:
        """Wait for the end of one; returns its exit code."""
        code = await child.wait()
        self._running.discard(child)
        return code

    async def follow(
        self, child: asyncio.subprocess.Process, name: str, say: Callable[[str], object], unless: str | None = None
    ) -> tuple[int, str]:
        """Say each line of a child's standard error behind a name, until it ends.

        Args:
            child: started with `stderr=PIPE`.
            name: of it.
            say: told each line.
            unless: how lines begin that are no reason, for the last one that is returned.

        Returns:
            Its exit code, and the last line.
        """
        assert child.stderr is not None
        last = "it said nothing"
        async for output in child.stderr:
            line = output.decode(errors="replace").rstrip()
            say(f"{name}: {line}")
            if line and not (unless and line.startswith(unless)):
                last = line.removeprefix("atelier: ")
        return await self.wait(child), last

    def raise_for_signal(self, left: str) -> None:
        """Raise what ends this command by the signal that it got, if it got one; `left` says what to do."""
        if self.signal == signal.SIGTERM:
            raise Terminated(f"terminated; {left}")
        if self.signal:
            raise KeyboardInterrupt

    def _end(self, number: int) -> None:
        self.signal = number
        for child in self._running:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()


def run(
    command: Sequence[str],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    say: Callable[[str], object] | None = None,
) -> str:
    """Run a command to its end and return what it wrote on standard output.

    Args:
        command: the program and its arguments.
        what: is done by it, for the message if it fails.
        cwd: the folder it runs in.
        env: its whole environment; `clean_environment()` if None.
        say: told each line of standard error as it comes.

    Raises:
        CommandMissing: if there is no such program.
        AtelierError: if it fails, with the last line of its standard error.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=clean_environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                preexec_fn=end_with(os.getpid()),
            )
        except FileNotFoundError as error:
            if error.filename != command[0]:
                raise  # the folder
            raise CommandMissing(f"{what}: {command[0]} is not on this machine; install it") from None
        last = ""
        with process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    last = line.strip().removeprefix("atelier: ") or last  # of a command of ours
                    if say is not None:
                        say(line.rstrip("\n"))
            except BaseException:
                process.terminate()
                raise
        if process.returncode < 0:
            raise AtelierError(f"{what}: {command[0]} was ended by {signal.Signals(-process.returncode).name}")
        if process.returncode:
            raise AtelierError(f"{what}: {last or f'{command[0]} ended with exit code {process.returncode}'}")
        output.seek(0)
        return output.read()


def retry(action: Callable[[], T], again: Callable[[Exception], bool], delays: Sequence[float]) -> T:
    """Call `action` until it succeeds, once more after each of `delays` (in seconds).

    Raises:
        Exception: of `action`; the first that `again` does not hold for a passing one, or the last of all.
    """
    for delay in delays:
        try:
            return action()
        except Exception as error:
            if not again(error):
                raise
        time.sleep(delay)
    return action()

"""Hostile inputs, one a try: `python benchmarks/hostile_campaign.py --tries 300`.

Every kind of file that Atelier reads, and every server that it asks, is damaged in one place (`hostile/inputs.py`), and
a command that reads it is run. Whatever the damage, the exit code is 0, and what was made is what the undamaged input
gives, or what the input says by its own words; or it is 1 or 2, and one line of standard error names the file or the
key, and what to do. No traceback, no code of the input run, no escape sequence in a terminal, nothing left in TMPDIR or
written outside of the workspace, what was there before as it was; at most 30 s of processors, and 1 GB more memory than
the process had before the command began (it is forked from one that has imported everything, as in the tests).

What a try does follows from the seed and its number: `--only 17` repeats one. Waiting between tries of a server is cut
short. Run as root it gives up root's way around permissions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT / "benchmarks"), str(PROJECT / "tests")]

import kill_campaign  # noqa: E402
from hostile.answers import Server, real_mlflow  # noqa: E402
from hostile.damages import MARKER  # noqa: E402
from hostile.inputs import FORMATS, FULL, INPUTS, STOPPED, Input  # noqa: E402
from kill_campaign import Campaign, conclude, leftovers, options, store  # noqa: E402

import small_trainings  # noqa: E402
from atelier.files import digest  # noqa: E402
from own_pictures import picture_array, tar_of, write_pictures  # noqa: E402

SECONDS, HANG_SECONDS = 30, 90
MEMORY_BYTES = 1 << 30
LINE_LIMIT = 1000
STORE = (
    "atelier: MLflow at "  # begins what a store that does not work answers; what to do about that it must say itself
)
NOISE = re.compile(
    r"Traceback \(most recent|^\s+File \"|\w+Warning: |^\w*Error: |Segmentation|core dumped", re.MULTILINE
)
REMEDY = re.compile(
    r"\b(run|restore|install|give|write|remove|set|add|make|correct|replace|get|register|retrain|train|look|choose|check"
    r"|delete|save|raise|mend|put|start|use|join|see|quotes|pull|complete|lower|space|rename|free|unset|leave|allow|expected"
    r"|did you mean|as)\b"
)
CAPABILITIES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


# --- a command in a forked process ------------------------------------------------------------------------------


def _obey_permissions() -> None:
    """Root reads what it may not: give that up (of this thread and those that it starts)."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    if libc.capget(header, data) == 0:
        data[0] &= ~CAPABILITIES
        libc.capset(header, data)


def _watch(root: Path, tmp: Path, outside: list[str]) -> None:
    """Note what this process writes elsewhere."""
    allowed = (os.path.realpath(root) + "/", os.path.realpath(tmp) + "/", "/dev/null/", "/dev/shm/", "/proc/")
    # where in an event's arguments a path stands, and the folder that it is relative to
    changes = {
        "os.rename": ((0, 2), (1, 3)),
        "os.link": ((1, 3),),
        "os.remove": ((0, 1),),
        "os.rmdir": ((0, 1),),
        "os.mkdir": ((0, 2),),
        "os.chmod": ((0, 2),),
    }

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            note(event, arguments[0], -1)
        for path, relative_to in changes.get(event, ()):
            note(event, arguments[path], arguments[relative_to])

    def note(event: str, path: Any, folder: int) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else "", os.fsdecode(path))
            real = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
            real = os.path.realpath(text) if event == "open" else os.path.normpath(real)
            if not f"{real}/".startswith(allowed):
                outside.append(f"{event} {real}")

    sys.addaudithook(look)


def _command(arguments: list[str], environment: dict[str, str], folder: Path, stopping: bool) -> None:
    """`atelier ARGUMENTS` in a session of its own; what it took is written down at its end."""
    import kubernetes.config.kube_config
    import torch

    import atelier.cli
    import atelier.data.sources.download
    import atelier.pipelines.server
    import atelier.training.train
    from atelier.components.workspace import errors_in_one_line

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder / "workspace")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    tempfile.tempdir = None  # as it was found out before the environment was this
    torch.set_num_threads(1)
    atelier.data.sources.download.DELAYS_SECONDS = (0.01,) * 3
    atelier.pipelines.server.FIRST_WAIT_SECONDS = 0.01
    kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION = environment["KUBECONFIG"]
    if stopping:  # with all that it had before the model was published
        setattr(atelier.training.train, "publish_model", lambda *_: os._exit(9))  # noqa: B010
    root, outside = folder / "workspace", list[str]()
    sys.dont_write_bytecode = True
    before, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    used = folder / "used"
    descriptor = os.open(used, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _obey_permissions()
    _watch(root, Path(environment["TMPDIR"]), outside)
    code: Any = 99
    try:
        if arguments[0] == "pull":
            from atelier.data.versions import pull

            with errors_in_one_line():
                pull("shapes", str(root / "repository"), arguments[1], "", root / "pulled")
            code = 0
        else:
            sys.argv = (
                ["atelier", *arguments, "--root", str(root)]
                if arguments[0] not in ROOTLESS
                else ["atelier", *arguments]
            )
            code = atelier.cli.main()
    except SystemExit as error:
        code = error.code
        raise
    finally:
        own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        times = os.times()
        seconds = times.user + times.system + times.children_user + times.children_system - spent
        os.write(descriptor, json.dumps([own - before, children, seconds, outside]).encode())
    sys.exit(code)


REFUSED = re.compile("reproduce|ingest fashion|rollback|pipeline logs")  # undamaged too, or long to succeed
ROOTLESS = ("pipeline", "schedule")


@dataclass
class Outcome:
    """What a command did, the last of several that were run."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float  # by the clock
    busy: float  # of processors
    megabytes: int
    outside: list[str]


@dataclass
class Hostile:
    """The campaign: its folders, its server, and what undamaged inputs give."""

    states: Campaign
    server: Server
    there: set[str] = field(default_factory=set)
    good: dict[tuple[str, str, str], dict[str, str]] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.states.base

    @property
    def root(self) -> Path:
        return self.states.root

    def environment(self, server: str) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "KF_", "KUBE"))
        }
        kept |= {
            "HOME": str(self.base / "home"),
            "TMPDIR": str(self.base / "tmp"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "DVC_NO_ANALYTICS": "true",
            "KUBECONFIG": str(self.root / "kubeconfig"),
            "MPLCONFIGDIR": str(self.base / "matplotlib"),
        }
        return (
            kept
            | {
                "": {},
                "kubeflow": {"KF_PIPELINES_ENDPOINT": self.server.home},
                "mlflow": {"MLFLOW_TRACKING_URI": self.server.home},
                "download": {"http_proxy": self.server.home, "https_proxy": self.server.home, "PATH": "/nowhere"},
                "s3": {
                    "AWS_ENDPOINT_URL": self.server.home,
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_CONFIG_FILE": str(self.root / "aws-config"),
                },
            }[server]
        )

    def run(self, commands: str, server: str, stopping: bool = False) -> Outcome:
        """Run commands one after the other until one fails."""
        said, start, busy, peak, outside = "", time.monotonic(), 0.0, 0, list[str]()
        code: int | None = None
        for command in commands.split(" ; "):
            arguments = command.split()
            if command == "pull":
                arguments.append(commit(self.root / "repository"))
            for name in ("stdout", "stderr", "used"):
                (self.base / name).write_text("")
            process = small_trainings.PRELOADED.Process(
                target=_command, args=(arguments, self.environment(server), self.base, stopping)
            )
            process.start()
            process.join(HANG_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            self.states.sessions = [process.pid or 0]
            code = process.exitcode
            said += (self.base / "stdout").read_text(errors="backslashreplace")
            with contextlib.suppress(OSError, ValueError):
                own, children, seconds, elsewhere = json.loads((self.base / "used").read_text())
                busy, peak, outside = max(busy, seconds), max(peak, own, children), outside + elsewhere
            if code:
                break
        stderr = (self.base / "stderr").read_text(errors="backslashreplace")
        return Outcome(code, said, stderr, time.monotonic() - start, busy, peak >> 10, outside)

    def undamaged(self, start: str, commands: str, server: str) -> dict[str, str]:
        """The files that commands leave of undamaged inputs."""
        key = start, commands, server
        if key not in self.good:
            self.put_back(start)
            self.server.begin(server, 0, random.Random())
            outcome = self.run(commands, server)
            assert outcome.code == 0, (start, commands, outcome)
            problems = self.traces(outcome)
            assert not problems, (start, commands, problems, outcome)
            self.good[key] = digests(self.root)
            if commands.startswith("ingest shapes"):
                shutil.copytree(self.root / "data", self.good_data(commands), dirs_exist_ok=True)
        return self.good[key]

    def good_data(self, commands: str) -> Path:
        """Where the data are kept that commands make of an undamaged source."""
        return self.base / "good" / commands.replace("/", ":")

    def put_back(self, start: str) -> None:
        """Make the workspace what a state was, and all around it empty."""
        self.root.mkdir(exist_ok=True)
        mirror(self.base / "states" / start, self.root)
        for name in ("tmp", "outside", "home"):
            shutil.rmtree(self.base / name, ignore_errors=True)
            (self.base / name).mkdir()
        (self.base / "outside" / "kept").write_text("kept")
        self.there = set(leftovers(self.root))  # of the training that was stopped

    def traces(self, outcome: Outcome) -> list[str]:
        """What no command may leave or do, however it ends."""
        problems = [
            f"{where} has {found[0][:80]!r}"
            for where, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr))
            if (found := NOISE.search(text))
        ]
        printed = {c for c in outcome.stdout + outcome.stderr if not c.isprintable() and c != "\n"}
        problems += [f"prints {sorted(printed)}"] if printed else []
        problems += (
            ["ran code of the input"] if any((folder / MARKER).exists() for folder in (self.base, self.root)) else []
        )
        problems += [f"wrote outside: {what}" for what in sorted(set(outcome.outside))]
        problems += [f"left in TMPDIR: {path.name}" for path in (self.base / "tmp").iterdir()]
        problems += [f"left at home: {path.name}" for path in (self.base / "home").iterdir()]
        if [path.read_text() for path in (self.base / "outside").iterdir()] != ["kept"]:
            problems.append("changed a folder outside")
        problems += [
            f"process {process} lives on" for process in kill_campaign.wait_for_the_end(self.states.sessions, 10)
        ]
        problems += [f"took {outcome.busy:.0f} s"] if outcome.busy > SECONDS else []
        problems += ["did not end"] if outcome.seconds > HANG_SECONDS else []
        problems += [f"took {outcome.megabytes} MB"] if outcome.megabytes > MEMORY_BYTES >> 20 else []
        left = set(leftovers(self.root)) - self.there
        return problems + [f"{name} is left over" for name in sorted(left)]


def mirror(source: Path, target: Path) -> None:
    """Make a folder what another one is, by removing and copying what differs."""
    wanted = {entry.name: entry for entry in os.scandir(source)}
    for entry in list(os.scandir(target)):
        if entry.name not in wanted or _mark(entry) != _mark(wanted[entry.name]):
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    for name, entry in wanted.items():
        if entry.is_dir(follow_symlinks=False):
            (target / name).mkdir(exist_ok=True)
            mirror(source / name, target / name)
        elif not os.path.lexists(target / name):
            shutil.copy2(entry, target / name, follow_symlinks=False)


def _mark(entry: os.DirEntry[str]) -> tuple[int, ...]:
    """What tells a file that was changed; of folders, that it is one."""
    status = entry.stat(follow_symlinks=False)
    return (
        (status.st_mode,) if entry.is_dir(follow_symlinks=False) else (*status[:1], status.st_size, status.st_mtime_ns)
    )


def digests(root: Path, but: Path | None = None) -> dict[str, str]:
    """sha256 of each file that two equal executions leave equal, without reading one that is damaged."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path != but and path.is_file() and not kill_campaign.OF_ONE_EXECUTION.match(relative):
                status = path.stat()
                found[relative] = _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)
    return found


@functools.lru_cache(maxsize=100_000)
def _digest(path: Path, *_: int) -> str:
    """The digest of a file, by what tells that it was changed."""
    return digest(path)


def registry(root: Path) -> Any:
    """Versions and aliases, if they can be read."""
    import sqlite3

    try:
        return {key: value for key, value in store(root).items() if key in ("versions", "aliases")}
    except (sqlite3.Error, OSError, ValueError):
        return None


def commit(repository: Path) -> str:
    """Commit all that there is."""
    author = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@example.org"}
    author |= {"GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@example.org"}
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "add", "-A"], check=False, capture_output=True)
    subprocess.run(
        [*git, "commit", "-qm", "x", "--allow-empty"], env=os.environ | author, check=True, capture_output=True
    )
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


# --- judging ----------------------------------------------------------------------------------------------------


def conserved(data: Path, good: Path, gone: bool) -> list[str]:
    """Of a damaged source every other picture is there, unchanged, and what is not is listed."""
    try:
        (now, total, left_out), (then, known, known_left_out) = pictures_of(data), pictures_of(good)
    except (OSError, ValueError, KeyError) as error:
        return [f"prepared data cannot be read: {error!r}"]
    lost = sum((then - now).values())
    problems = [f"{lost} pictures are others"] if lost > 2 else []
    missing = known + known_left_out - total - left_out
    return problems + (
        [f"{missing} pictures are gone and not listed"] if not -1 <= missing <= gone else []
    )  # an added one is listed


def pictures_of(data: Path) -> tuple[Counter[tuple[str, int]], int, int]:
    """Images with their labels, how many, and how many are left out."""
    folder = data / "prepared" / "shapes"
    card = json.loads((folder / "card.json").read_text())
    found = Counter[tuple[str, int]]()
    for split in ("train", "test"):
        images, labels = np.load(folder / f"{split}-images.npy"), np.load(folder / f"{split}-labels.npy")
        found.update(
            (hashlib.sha256(image.tobytes()).hexdigest(), int(label))
            for image, label in zip(images, labels, strict=True)
        )
    return found, sum(found.values()), sum(item["is_picture"] for item in card["left_out"]) + card["unused"]


@dataclass
class Try:
    """A damaged input, and how the workspace was before a command read it.

    Attributes:
        entry: what is damaged.
        commands: that are run.
        path: the damaged file; None: an answer of a server.
        before: what the file held.
        what: the damage, in words.
        state: digests of all other files.
        versions: what is registered; None if that is what was damaged.
        good: the files that the commands leave of undamaged inputs; none if that is not known.
    """

    entry: Input
    commands: str
    path: Path | None
    before: bytes
    what: str
    state: dict[str, str]
    versions: Any
    good: dict[str, str]


def accepted(campaign: Hostile, one: Try) -> tuple[str, list[str]]:
    """How a try ended whose exit code is 0, in words, and what is wrong with that."""
    now, path = digests(campaign.root, one.path), one.path
    skipped = path.relative_to(campaign.root).as_posix() if path else ""
    names = (one.good or one.state).keys() | now.keys()
    differing = sorted(n for n in names - {skipped} if (one.good or one.state).get(n) != now.get(n))
    if not differing:
        return "harmless", []
    if one.commands.startswith("ingest shapes --set"):
        gone = path is not None and (not path.is_file() or path.is_symlink() or path.stat().st_size > 1 << 30)
        return "as it says", conserved(campaign.root / "data", campaign.good_data(one.commands), gone)
    if path is None or one.entry.says(path, one.before):
        return "as it says", []
    return "accepted in silence", [f"{differing[:5]} differ"]


def refused(campaign: Hostile, one: Try, outcome: Outcome) -> list[str]:
    """What is wrong with an error."""
    now, problems = digests(campaign.root, one.path), list[str]()
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("atelier: ")]
    if outcome.code not in (1, 2) or len(lines) != 1 or not outcome.stderr.rstrip("\n").endswith(lines[0]):
        problems.append(f"exit code {outcome.code}, {len(lines)} lines of error at the end")
    names = "|".join([one.entry.names, *([re.escape(one.path.name)] if one.path else [])])
    if "data check" in one.commands:  # which names each file in a line of its own
        names += "|^atelier: shapes: "
    for line in lines:
        problems += [] if re.search(names, line) else [f"names nothing: {line[:300]}"]
        problems += [] if REMEDY.search(line) or line.startswith(STORE) else [f"says nothing to do: {line[:300]}"]
        problems += [f"a line of {len(line)} characters"] if len(line) > LINE_LIMIT else []
    for name in sorted(one.state.keys() | now.keys()):
        # of several commands some may have succeeded
        if now.get(name) not in (one.state.get(name), one.good.get(name, "")) and not re.match(
            one.entry.may_change, name
        ):
            problems.append(f"{name} changed")
    if one.versions is not None and (after := registry(campaign.root)) is not None and after != one.versions:
        problems.append(f"the registry changed: {one.versions} → {after}")
    return problems


def damaged(campaign: Hostile, entry: Input, chance: random.Random) -> Try:
    """Put the workspace back, and damage an input of it."""
    commands = chance.choice(entry.commands)
    good = {} if REFUSED.match(commands) else campaign.undamaged(entry.start, commands, entry.server)
    campaign.put_back(entry.start)
    path, before, what = None, b"", ""
    if entry.where:
        path = chance.choice([found for found in sorted(campaign.root.glob(entry.where)) if found.is_file()])
        before, damage = path.read_bytes(), chance.choice(entry.damages)
        what = f"{path.relative_to(campaign.root)}: {damage(path, chance)}"
        regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30
        if entry.seal and regular and stat.S_IMODE(path.stat().st_mode):
            entry.seal(campaign.root, path)
    versions = None if entry.kind == "MLflow database" else registry(campaign.root)
    campaign.server.begin(entry.server, 0 if entry.where else chance.choice([1, 1, 2, 3]), chance)
    return Try(entry, commands, path, before, what, digests(campaign.root, path), versions, good)


def tries(campaign: Hostile, seed: int, numbers: Iterator[int] | range) -> Iterator[dict[str, Any]]:
    """Damage, run, judge."""
    for number in numbers:
        entry = INPUTS[number % len(INPUTS)]
        one = damaged(campaign, entry, random.Random(f"{seed} {number}"))
        outcome = campaign.run(one.commands, entry.server)
        problems = campaign.traces(outcome)
        ended, more = accepted(campaign, one) if outcome.code == 0 else ("refused", refused(campaign, one, outcome))
        problems += more
        yield {
            "try": number,
            "format": entry.kind,
            "damage": (one.what or campaign.server.did)[:200],
            "command": one.commands,
            "ended": ended,
            "seconds": round(outcome.seconds, 1),
            "megabytes": outcome.megabytes,
            "said": next((line for line in outcome.stderr.splitlines() if line.startswith("atelier: ")), "")[:400],
            "problems": problems + ([outcome.stderr[-1500:]] if problems else []),
        }


# --- states -----------------------------------------------------------------------------------------------------


def make_beginning(folder: Path) -> None:
    """A workspace with sources of every kind, in a repository of git."""
    from atelier.data.arrays import encode_idx

    write_pictures(folder / "pictures", 160)
    (folder / "params.yaml").write_text(kill_campaign.PARAMS)
    sources = folder / "sources"
    for number in range(96):
        suffix, form = list(FORMATS.items())[number // 2 % len(FORMATS)]
        place = sources / "pictures" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(picture_array(number)).save(buffer, form)
        (place / f"{number}.{suffix}").write_bytes(buffer.getvalue())
    shutil.make_archive(str(sources / "pictures"), "zip", folder, "pictures")
    tar_of(folder / "pictures", sources / "pictures.tar")
    tar_of(folder / "pictures", sources / "pictures.tar.gz")
    write_pictures(sources / "table", 160, classes=())
    rows = [f"{number}.png,{('cat', 'dog')[number % 2]}" for number in range(160)]
    (sources / "table" / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    pixels = np.stack([picture_array(number, 28)[..., 0] for number in range(40)])
    labels = (np.arange(40) % 10).astype(np.uint8)
    for place, names in (
        (folder / "data/raw/mnist", ("train-{}.idx", "test-{}.idx")),
        (sources / "fashion", ("train-{}-idx-ubyte", "t10k-{}-idx-ubyte")),
    ):
        place.mkdir(parents=True)
        for name in names:
            images_name, labels_name = name.format("images"), name.format("labels")
            if "ubyte" in name:
                images_name, labels_name = images_name.replace("idx", "idx3"), labels_name.replace("idx", "idx1")
            (place / images_name).write_bytes(encode_idx(pixels))
            (place / labels_name).write_bytes(encode_idx(labels))
    (folder / "aws-config").write_text("[default]\nregion = us-east-1\ns3 =\n  max_concurrent_requests = 2\n")
    cluster = {"name": "here", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [cluster],
        "contexts": [context],
    }
    (folder / "kubeconfig").write_text(json.dumps(config | {"users": [{"name": "me", "user": {}}]}))
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("*\n!params.yaml\n!.gitignore\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = /nowhere\n")
    commit(folder)


def make_repository(root: Path) -> None:
    """A repository whose dvc.lock has the raw data."""
    repository = root / "repository"
    (repository / "data" / "raw").mkdir(parents=True)
    shutil.copytree(root / "data" / "raw" / "shapes", repository / "data" / "raw" / "shapes")
    (repository / "dvc.yaml").write_text(
        "stages:\n  ingest:\n    cmd: atelier ingest\n    outs:\n    - data/raw/shapes\n"
    )
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    for command in (["init", "-q"], ["commit", "-f", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=repository, check=True)
    commit(repository)


def make_states(campaign: Hostile) -> None:
    """Run the whole pipeline once, and stop one training right before its end."""
    states = campaign.states
    make_beginning(states.base / "states" / "beginning")
    states.prepare("compare")
    campaign.put_back("train")
    for done in (campaign.root / "models" / "gan", campaign.root / "runs" / "gan"):
        shutil.rmtree(done)
    outcome = campaign.run("train gan --set train.checkpoint_seconds=0.001", "", stopping=True)
    assert outcome.code == 9, outcome
    assert any(campaign.root.glob("checkpoints/gan/*.checkpoint"))
    shutil.copytree(campaign.root, states.base / "states" / STOPPED, symlinks=True)
    full = states.base / "states" / FULL
    make_repository(full)
    (full / "plan.json").write_text("{}")
    campaign.put_back(FULL)
    campaign.run("plan", "")
    shutil.copy(campaign.root / "plan.json", full)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--folder", type=Path, help="keeps what undamaged commands made, for the next call")
    arguments = parser.parse_args()
    small_trainings.PRELOADED.set_forkserver_preload(
        [
            *("atelier.cli", "atelier.training.train", "atelier.training.gan", "atelier.training.vae", "torch._dynamo"),
            *("__main__", "atelier.evaluation.evaluate", "atelier.evaluation.compare", "atelier.registry.register"),
            *("atelier.data.prepare", "atelier.data.ingest", "atelier.plan", "atelier.pipelines.runs"),
            *("atelier.pipelines.server", "atelier.pipelines.schedule", "atelier.registry.reproduce"),
            *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
            *("matplotlib.figure", "matplotlib.backends.backend_svg", "jinja2", "boto3", "requests", "kubernetes"),
            *("kfp_server_api", "dvc.config", "pandas", "mlflow.pyfunc", "mlflow.artifacts"),
            *(f"PIL.{form.title().replace('Webp', 'WebP')}ImagePlugin" for form in FORMATS.values()),
        ]
    )
    first = small_trainings.PRELOADED.Process(target=int)
    first.start()
    first.join()
    start, results = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.folder or Path(temporary)
        for name in ("tmp", "home", "outside", "matplotlib"):
            (base / name).mkdir(parents=True, exist_ok=True)
        campaign = Hostile(Campaign(base), Server(base / "states" / FULL))
        if not (base / "states" / STOPPED).exists():
            make_states(campaign)
        with real_mlflow(base / "states" / FULL, base / "served") as campaign.server.upstream:
            for result in tries(campaign, arguments.seed, arguments.only or range(arguments.tries)):
                results.append(json.loads(json.dumps(result).replace(str(base), "BASE")))
                print(json.dumps(results[-1]), flush=True)
    conclude(
        arguments,
        results,
        start,
        {
            "ended": dict(Counter(result["ended"] for result in results)),
            "by format": {
                kind: dict(Counter(result["ended"] for result in results if result["format"] == kind))
                for kind in sorted({result["format"] for result in results})
            },
            "most seconds": max(result["seconds"] for result in results),
            "most megabytes": max(result["megabytes"] for result in results),
        },
    )


if __name__ == "__main__":
    main()

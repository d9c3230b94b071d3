"""A stage in a workspace of its own: inputs linked to where stages look for them, results moved out.

So a stage runs where it has no folder in common with the others, such as the pods of a Kubeflow pipeline.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from atelier.components.progress import told_to_trainer
from atelier.config.records import Report
from atelier.errors import LOST_RANK, AtelierError, InputError
from atelier.files import write_atomic, write_json
from atelier.tracking.origin import PIPELINE_RUN

COMMON_PARAMS = "ATELIER_COMMON_PARAMS"  # in the environment: of training.common_params
CLUSTER = "ATELIER_CLUSTER"  # in the environment of a step that launches TrainJobs: `cluster` of params.yaml
TRIES = "ATELIER_TRIES"  # in the environment: how often a stage's command is tried
WORKSPACES = "ATELIER_WORKSPACES"  # in the environment: the folder of a shared volume
KEPT_DAYS = 14
RETRY_SECONDS = 30.0
LAST_LINES = 200  # in which a failed training's reason is looked for: torchrun adds a report of its own
FAILURES = "failures"  # in a workspace: what the nodes of each run's TrainJob left
SOURCES = "sources"  # a stage's parameter beside the sections of params.yaml: code of the workspace's own
PLACE = "place"  # metadata of an artifact: its path in a workspace, such as models/RUN


class Artifact(Protocol):
    """What a workspace needs of a Kubeflow artifact: a file or folder, and what is known of it."""

    path: str
    metadata: dict[str, Any]


def run_stage(
    stage: str,
    name: str | None,
    params: Mapping[str, Any],
    inputs: Iterable[Artifact],
    outputs: Mapping[str, Artifact],
    processes: int = 1,
) -> None:
    """Run `atelier STAGE [NAME]` and fill the output artifacts.

    Args:
        stage: the command.
        name: its data set or run; None for a stage over all of them.
        params: its params.yaml.
        inputs: artifacts of stages before, each knowing its place.
        outputs: place in the workspace → artifact.
        processes: of a training, each a rank.

    Raises:
        SystemExit: with the stage's exit code, if it fails; it has said why.
    """
    print(f"{stage} {name}" if name else stage, flush=True)
    with workspace(f"{stage}-{name or 'all'}") as root:
        fill(root, params, inputs)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *(launcher if processes > 1 else []), "atelier", stage]
        run_command([*command, *([name] if name else []), "--root", str(root)])
        take(root, outputs)


def ingest_version(
    dataset: str,
    params: Mapping[str, Any],
    outputs: Mapping[str, Artifact],
    repository: str,
    revision: str,
    remote: str,
) -> None:
    """Raw files out of a DVC remote, if a revision says which, or ingested and put into it; as `run_stage`."""
    from atelier.data.versions import pull, push

    with errors_in_one_line(), workspace(f"ingest-{dataset}") as root:
        fill(root, params, [])
        if revision:
            pull(dataset, repository, revision, remote, root)
        else:
            run_command([sys.executable, "-m", "atelier", "ingest", dataset, "--root", str(root)])
            md5 = push(dataset, remote, root)
            print(f"pushed to {remote} as {md5}", flush=True)
            for artifact in outputs.values():
                artifact.metadata |= {"dvc_md5": md5, "dvc_remote": remote}
        take(root, outputs)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process as the command line does: one line that says what is wrong, and the exit code."""
    try:
        yield
    except AtelierError as error:
        print(f"atelier: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """Yield a folder that goes when the stage succeeds.

    With ATELIER_WORKSPACES (a shared volume) and ATELIER_PIPELINE_RUN in the environment, a stage that failed finds
    its folder again, and its checkpoints in it, when it is tried once more; `clear_workspaces` removes it in time.
    """
    if shared := os.environ.get(WORKSPACES):
        root = Path(shared) / os.environ[PIPELINE_RUN] / name
        root.mkdir(parents=True, exist_ok=True)
        yield root
        shutil.rmtree(root)
    else:
        with tempfile.TemporaryDirectory(prefix=f"atelier-{name}-") as folder:
            yield Path(folder)


def clear_workspaces(shared: Path, pipeline_run: str) -> None:
    """Remove what a pipeline run left empty, and what runs that failed left `KEPT_DAYS` ago and nobody tried again."""
    with contextlib.suppress(OSError):  # not empty: for a retry
        (shared / pipeline_run).rmdir()
    for folder in shared.iterdir():
        paths = [folder, *folder.rglob("*")]
        newest = max((path.lstat().st_mtime for path in paths), default=0)
        if time.time() - newest > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def fill(root: Path, params: Mapping[str, Any], inputs: Iterable[Artifact]) -> None:
    """Write params.yaml and put every input in its place: by hard links, since MLflow takes no symbolic ones."""
    values = as_written(params)
    write_sources(root, values.pop(SOURCES, {}))
    for section, keys in json.loads(os.environ.get(COMMON_PARAMS, "{}")).items():
        values[section] = keys | values.get(section, {})
    write_json(root / "params.yaml", values)
    for artifact in inputs:
        place(Path(artifact.path), root / artifact.metadata[PLACE])


def write_sources(root: Path, sources: Mapping[str, str]) -> None:
    """Write the code of a workspace's own; see `training.handed_over`."""
    for name, text in sources.items():
        write_atomic(root / name, base64.b64decode(text))


def place(source: Path, target: Path) -> None:
    """Put a file or folder where a workspace has it, without a copy where it can; one that is there stays."""
    if target.exists():  # of an attempt before this one
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy)
    else:
        _link_or_copy(source, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def take(root: Path, outputs: Mapping[str, Artifact]) -> None:
    """Move what a stage made into its artifacts."""
    for where, artifact in outputs.items():
        target = Path(artifact.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / where, target)
        artifact.metadata[PLACE] = where


def as_written(params: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's params.yaml from what Kubeflow hands it; see `training.stage_params`."""
    values: dict[str, Any] = whole_numbers(dict(params))
    values["runs"] = {run["run"]: {key: value for key, value in run.items() if key != "run"} for run in values["runs"]}
    return values


def whole_numbers(value: Any) -> Any:
    """Undo what Kubeflow does to the numbers in lists and structs: all arrive as floats, and 50.0 is no batch."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Failure(NamedTuple):
    """How a command failed.

    Attributes:
        code: the exit code; of a training by several processes, that of the first which failed.
        line: what it said last, or why.
    """

    code: int
    line: str


def run_command(command: Sequence[str]) -> None:
    """Run a stage's command; one that failed is tried again as often as ATELIER_TRIES says.

    The server does that for a lost pod alone. Wrong input stays wrong, and is not tried again; a training goes on from
    its checkpoints. SIGTERM is passed on, so that a training saves itself.

    Raises:
        SystemExit: with the exit code of the last try.
    """
    tries = int(os.environ.get(TRIES, "1"))
    with _Child() as child:
        number = 1
        while (failure := child.run(command)) is not None:
            if number >= tries or failure.code == InputError.exit_code or child.stopped:
                raise SystemExit(failure.code)
            number += 1
            told = f"ended with {failure.code}: try {number} of {tries} in {RETRY_SECONDS:g} s"
            print(told, file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def run_node(run: str, root: Path, params: str = "params.yaml") -> None:
    """Train on this node of a TrainJob, once; a failure is left in the shared workspace, where the launcher finds it.

    Args:
        run: to train.
        root: the shared workspace.
        params: its parameter file, relative to `root`.

    Raises:
        SystemExit: with the exit code of the process that failed first, of which torchrun makes 1.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "atelier", "train", run]
    with _Child() as child, told_to_trainer(run, root, params):
        failure = child.run([*command, "--root", str(root), "--params", params])
        if failure is None:
            return
        if not child.stopped and LOST_RANK not in failure.line:
            folder = root / "checkpoints" / run
            # of several seeds each has a folder
            newest = max((path.relative_to(folder).as_posix() for path in folder.rglob("*.checkpoint")), default="")
            host = socket.gethostname()
            report = root / FAILURES / run / f"{host}-{time.time_ns()}.json"
            write_json(report, {"host": host, "newest": newest, **failure._asdict()})
        print(f"atelier: {failure.line}", file=sys.stderr, flush=True)  # after torchrun's own words
        raise SystemExit(failure.code)


class _Child:
    """A process at a time, told of SIGTERM and heard.

    Attributes:
        stopped: whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)

    def _stop(self, *_: object) -> None:
        self.stopped = True
        if self.process is None:
            raise SystemExit(128 + signal.SIGTERM)
        self.process.terminate()

    def run(self, command: Sequence[str]) -> Failure | None:
        """Run it to its end and pass on what it says; None if all went well."""
        said = deque[str](maxlen=LAST_LINES)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
            self.process = process
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line.rstrip())
                with contextlib.suppress(OSError):  # whoever listened is gone; the training need not be
                    sys.stderr.write(line)
                    sys.stderr.flush()
        self.process, code = None, process.returncode
        if code == 0:
            return None
        # torchrun's report names the root cause last
        codes = [int(found[1]) for line in said if (found := re.search(r"^\s*exitcode\s*: (-?\d+)", line))]
        code = codes[-1] if codes else code
        reasons = [line.removeprefix("atelier: ") for line in said if line.startswith("atelier: ")]
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Failure(128 - code if code < 0 else code, reasons[-1] if reasons else killed)


def write_page(page: Artifact, title: str, folder: Artifact, pictures: Iterable[str]) -> None:
    """Write an HTML page, complete in itself, that shows pictures of an artifact."""
    images = "".join(
        f'<p><img alt="{name}" src="data:image/{Path(name).suffix[1:]};base64,'
        f'{base64.b64encode((Path(folder.path) / name).read_bytes()).decode()}">'
        for name in pictures
    )
    write_html(page, title, images)


def write_html(page: Artifact, title: str, body: str) -> None:
    """Write an HTML page of a title, which is escaped, and a body, which is not."""
    title = html.escape(title)
    write_atomic(Path(page.path), f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{body}")


def log_figures(figures: Artifact, report: Artifact) -> None:
    """Give the figures of a report to an artifact, whose metadata Kubeflow shows."""
    for name, value in Report.read(Path(report.path) / Report.file, "atelier evaluate").metrics.items():
        figures.metadata |= {name: value.mean, f"{name}_deviation": value.deviation}


if __name__ == "__main__":  # the command of a TrainJob's nodes
    run_node(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

"""The Kubeflow pipeline on this machine: the compiled graph and its components, without a cluster."""

from __future__ import annotations

import builtins
import io
import os
import re
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.components.workspace import PLACE, place, write_sources
from atelier.errors import AtelierError, InputError
from atelier.files import read_json
from atelier.tracking import client, experiment_id, tracking_uri
from atelier.tracking.origin import GIT_COMMIT, PIPELINE_RUN, commit_of

if TYPE_CHECKING:
    from kfp.local import DockerRunner

    from atelier.config import Params

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOGGED = re.compile(r"\d\d:\d\d:\d\d\.\d+ - [A-Z]+ - ")  # before what kfp's runner logs
BEGINS = re.compile(r"Executing task '(.+)'")
OF_KFP = re.compile(r"-+$|\[KFP Executor .*")  # lines that it prints, or that its part of a stage says


def run_local(
    params: Params,
    root: Path,
    out: Path,
    image: str | None,
    say: Callable[[str], None],
    promote: str = "",
    search: str = "",
) -> Path:
    """Run the pipeline in subprocesses, or in containers of an image, and lay its outputs out as a workspace.

    Args:
        params: of the pipeline.
        root: what relative paths of `ingest.paths` are relative to.
        out: a new or empty folder. It becomes a workspace: what each task made, the same where a
            workspace has it, and the MLflow store, unless MLFLOW_TRACKING_URI names another.
        image: a container image; None for subprocesses.
        say: is told what the stages say; standard output is kfp's meanwhile.
        promote: see `Options`.
        search: see `Options`.

    Raises:
        InputError: if `out` holds something, a file or folder of `ingest.paths` is not there, or a data set has no run.
        AtelierError: if a stage fails or an output is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty; name a new folder or remove it")
    from docker.errors import DockerException
    from kfp import local

    from atelier.pipelines.training import Options, arguments, build, handed_over

    values = arguments(params, search)
    paths = dict[str, str]()
    for item in [values] if search else values["datasets"]:
        if not search and not item["runs"]:
            raise InputError(
                f"params.yaml: datasets: '{item['dataset']}' has no run, and Kubeflow's local runner fails at a loop "
                "over none; add one, or leave the data set out"
            )
        own = item["ingest"]["ingest"].get("paths", {})
        paths |= {name: _absolute(where, root) for name, where in own.items()}
        own |= {name: paths[name] for name in own}
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    experiment_id(client(out), out)  # else the first stage makes it, with artifacts in its own short-lived folder
    environment = {PIPELINE_RUN: uuid.uuid4().hex, "MLFLOW_TRACKING_URI": tracking_uri(out)}
    if (commit := commit_of(root)) is not None:
        environment[GIT_COMMIT] = commit
    runner = _docker(paths) if image else local.SubprocessRunner(use_venv=False)
    try:
        with warnings.catch_warnings(), _flat_lists(), _same_print(), redirect_stdout(_Told(say)):
            warnings.simplefilter("ignore")  # of what has no meaning here: resources, the name of an image
            local.init(runner, pipeline_root=str(out))
            options = Options(
                image or "python", volume=False, tries=1, environment=environment, promote=promote, search=search
            )
            build(options, params)(**values)
    except (RuntimeError, DockerException) as error:
        raise AtelierError(COLOURS.sub("", str(error).splitlines()[0])) from None
    _place_artifacts(out)
    parts = [*params.metric_parts(), *(part for name in params.datasets for part in params.dataset_parts(name))]
    write_sources(out, handed_over(params, params.runs, parts))
    _require_outputs(params, search, out)
    return out


class _Line(threading.local):
    """What a thread is at: its task, and the part of a line that it has written."""

    task, begun = "kfp", ""


class _Told(io.TextIOBase):
    """Standard output of kfp's runner, which has a thread a task: passes on what the stages say, a line at a time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.line = _Line()

    def write(self, text: str) -> int:
        """Take part of a line, some lines, or a record of kfp's log: that comes at once, and tells of a new task."""
        if LOGGED.match(text):
            if begins := BEGINS.search(COLOURS.sub("", text)):
                self.line.task, self.line.begun = begins[1], ""
            return len(text)
        *lines, self.line.begun = (self.line.begun + text).split("\n")
        for line in map(str.strip, lines):
            if line and not OF_KFP.match(line):
                self.say(f"{self.line.task}: {line}")
        return len(text)


@contextmanager
def _flat_lists() -> Iterator[None]:
    """Hand on what two loops collect as one list, as the server does; kfp's runner makes it a list of lists."""
    from kfp.local import executor_input_utils

    original = executor_input_utils.dsl_artifact_to_artifact_list

    def flat(found: Any) -> Any:
        while isinstance(found, list) and any(isinstance(item, list) for item in found):
            found = [one for item in found for one in item]
        return original(found)

    executor_input_utils.dsl_artifact_to_artifact_list = flat
    try:
        yield
    finally:
        executor_input_utils.dsl_artifact_to_artifact_list = original


@contextmanager
def _same_print() -> Iterator[None]:
    """Put `print` back: kfp's threads each indent it for their while, and one puts back what another made of it."""
    original = builtins.print
    try:
        yield
    finally:
        builtins.print = original


def _absolute(where: str, root: Path) -> str:
    """A file or folder by its absolute path, which it has in a container too; other sources as they are."""
    return where if "://" in where else str((root / Path(where).expanduser()).resolve())


def _docker(paths: dict[str, str]) -> DockerRunner:
    """Containers as this user, which see the user's own data where they are."""
    from docker.types import Mount
    from kfp import local

    own = {name: where for name, where in paths.items() if "://" not in where}
    for name, where in own.items():
        if not Path(where).exists():
            raise InputError(f"ingest.paths.{name}: {where}: no such file or folder")
    mounts = [Mount(where, where, type="bind", read_only=True) for where in own.values()]
    # the image's own entry point is `atelier`; a task brings a whole command
    return local.DockerRunner(user=f"{os.getuid()}:{os.getgid()}", entrypoint="env", mounts=mounts)


def _place_artifacts(out: Path) -> None:
    """Put every artifact that knows its place in a workspace there."""
    for written in sorted(out.rglob("executor_output.json")):
        for artifacts in read_json(written).get("artifacts", {}).values():
            for artifact in artifacts["artifacts"]:
                if where := artifact.get("metadata", {}).get(PLACE):
                    place(Path(artifact["uri"]), out / where)


def _require_outputs(params: Params, search: str, out: Path) -> None:
    """A run is judged by what it made: Docker has been seen to report a failed container as a success."""
    wanted = [f"data/prepared/{dataset}/card.json" for dataset in params.datasets]
    wanted += [f"registry/{run}.json" for run in params.runs]
    for output in [f"search/{search}/optuna.log"] if search else [*wanted, "reports/index.html"]:
        if not (out / output).is_file():
            raise AtelierError(f"{out / output}: missing after the run, although no stage said that it failed")

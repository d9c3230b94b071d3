"""`atelier pipeline submit`: compile, upload, run, follow; the exit code is by the run's end."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError
from atelier.files import digest
from atelier.pipelines.training import NAME, Options, arguments, compile_pipeline

if TYPE_CHECKING:
    from atelier.config import Params
    from atelier.pipelines.server import Server

POLL_SECONDS = 10.0
ENDS = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


def upload(server: Server, params: Params, options: Options) -> Any:
    """The compiled pipeline as a version on the server; the same file is uploaded once, whoever does it."""
    with tempfile.TemporaryDirectory() as folder:
        file = compile_pipeline(params, options, Path(folder) / "pipeline.yaml")
        return server.pipeline_version(NAME, f"{NAME}-{digest(file)[:12]}", str(file))


def submit(
    server: Server,
    params: Params,
    options: Options,
    experiment: str,
    account: str | None,
    data_version: Mapping[str, str],
) -> Any:
    """Start a run of the pipeline with these parameters; returns the server's run."""
    version = upload(server, params, options)
    name = f"{NAME}-{uuid.uuid4().hex[:12]}"
    return server.run(name, server.experiment(experiment), version, arguments(params) | dict(data_version), account)


def follow(server: Server, run_id: str, say: Callable[[str], None]) -> None:
    """Wait until a run ends and tell its states.

    Raises:
        AtelierError: if it ends in anything but success; the message names the tasks that failed.
    """
    state = ""
    while True:
        run = server.call(server.runs.run_service_get_run, run_id)
        if run.state and run.state != state:
            state = run.state
            say(f"{run.display_name}: {state.lower()}")
        if state in ENDS:
            break
        time.sleep(POLL_SECONDS)
    if state != "SUCCEEDED":
        tasks = (run.run_details.task_details or []) if run.run_details else []
        failed = ", ".join(
            sorted({task.display_name for task in tasks if task.state == "FAILED" and task.display_name})
        )
        raise AtelierError(f"run {run_id} ended {state.lower()}" + (f"; failed: {failed}" if failed else ""))

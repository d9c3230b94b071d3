"""`atelier runs close`: ends the MLflow runs of trainings that were killed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.files import is_running
from atelier.tracking import EXPERIMENT, client, mlflow_errors
from atelier.tracking.origin import HOST_TAG, PID_TAG, PIPELINE_RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def close_runs(root: Path, say: Callable[[str], None], older_than_hours: float | None = None) -> int:
    """End as KILLED each run that is RUNNING though its process on this machine is not; returns how many.

    Args:
        root: the workspace.
        say: tells the person.
        older_than_hours: also end runs of other machines that began longer ago: theirs cannot be looked at.
    """
    closed = 0
    with mlflow_errors(root):
        mlflow_client = client(root)
        for run in _running(mlflow_client):
            tags = run.data.tags
            hours = (time.time() - run.info.start_time / 1000) / 3600
            if tags.get(HOST_TAG) == socket.gethostname():
                dead = not is_running(int(tags[PID_TAG]))
            else:
                dead = older_than_hours is not None and hours > older_than_hours
            if dead:
                mlflow_client.set_terminated(run.info.run_id, status="KILLED")
                say(f"KILLED {run.info.run_name} ({run.info.run_id}), began {hours:.1f} hours ago")
                closed += 1
    return closed


def close_pipeline_runs(root: Path, pipeline_run: str) -> int:
    """End what a Kubeflow run left RUNNING, such as a training killed for memory; returns how many there were."""
    closed = 0
    with mlflow_errors(root):
        mlflow_client = client(root)
        for run in _running(mlflow_client, f" and tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run}'"):
            mlflow_client.set_terminated(run.info.run_id, status="KILLED")
            closed += 1
    return closed


def _running(mlflow_client: MlflowClient, condition: str = "") -> Iterator[Run]:
    experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        yield from mlflow_client.search_runs(
            [experiment.experiment_id], f"attributes.status = 'RUNNING'{condition}", max_results=50000
        )

"""`atelier runs close`: ends the MLflow runs of trainings that were killed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from atelier.files import is_running
from atelier.origin import HOST_TAG, PID_TAG
from atelier.tracking import EXPERIMENT, client, mlflow_errors


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
        experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return 0
        for run in mlflow_client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
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

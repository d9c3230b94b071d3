"""MLflow's runs of trainings: found or made, and ended where a training was killed."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from atelier.config.records import ModelConfig, Record
from atelier.errors import InputError
from atelier.files import is_running
from atelier.tracking.origin import HOST_TAG, PID_TAG, PIPELINE_RUN_TAG, data_input, origin_tags, process_tags
from atelier.tracking.store import (
    EXPERIMENT,
    artifacts_folder,
    client,
    equals,
    every,
    mlflow_errors,
    public_uri,
    sqlite_file,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MARK_TAG = "atelier.mark"  # by which a run is found whose id was not written down
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="32 hexadecimal digits")]


class RunRecord(Record):
    """`mlflow.json` of a training: which MLflow run it feeds, or how that run can be found."""

    what: ClassVar = "the record of an MLflow run"

    format: Literal[1] = 1
    run_id: Hex | None  # None: its making was not heard of
    training: str  # digest of what the training is; another one gets a run of its own
    mark: Hex

    @classmethod
    def find(cls, folder: Path) -> RunRecord | None:
        """That of a folder; None if there is none.

        Raises:
            AtelierError: if it is damaged.
        """
        path = cls.path(folder)
        return cls.read(path, "atelier train") if path.is_file() else None

    @staticmethod
    def path(folder: Path) -> Path:
        """Where it lies in a folder."""
        return folder / "mlflow.json"


def run_params(config: ModelConfig) -> dict[str, Any]:
    """What an MLflow run records of a model's config: every parameter of its training, and which weights it kept."""
    snapshot = config.snapshot.model_dump() if config.snapshot else {}
    kept = {f"snapshot.{key}": value for key, value in snapshot.items() if value != ""}
    return {"dataset": config.dataset, "model": config.model} | config.recipe.model_dump() | kept


def group_mark(folder: Path) -> str:
    """The mark of the run in which those of several trainings are nested, written down in the folder they share."""
    record = RunRecord.find(folder)
    if record is None:
        record = RunRecord(run_id=None, training="", mark=uuid.uuid4().hex)
        record.write(RunRecord.path(folder))
    return record.mark


def ensure_run(
    root: Path, name: str, params: Mapping[str, object], run_id: str | None, mark: str = "", group: str = ""
) -> str:
    """The MLflow run of a training, made if there is none.

    MLFLOW_RUN_ID in the environment is honoured, then `run_id`, then a run that bears the mark: it was made, but who
    made it did not live to write its id down. A `run_id` that this store does not know, since it is another store
    than before, gives a new run: the journal holds all that is needed to fill it. With a `group`, a `group_mark`, it is
    one of several that are nested in the run of that mark, or in that of MLFLOW_RUN_ID.

    Raises:
        InputError: if MLFLOW_RUN_ID names no run, or the experiment lies in MLflow's trash.
    """
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    mlflow_client = client(root)
    from_environment = None if group else os.environ.get("MLFLOW_RUN_ID")
    run = None
    if wanted := from_environment or run_id:
        try:
            run = mlflow_client.get_run(wanted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        if run is not None and run.info.lifecycle_stage == "deleted":
            run = None
        if run is None and from_environment:
            raise InputError(f"MLFLOW_RUN_ID={wanted}: no such run in {public_uri(tracking_uri(root))}; unset it")
    experiment = experiment_id(mlflow_client, root) if run is None else run.info.experiment_id
    if run is None and mark:
        run = next(iter(mlflow_client.search_runs([experiment], equals(f"tags.`{MARK_TAG}`", mark))), None)
    if run is None:
        tags = (
            origin_tags(mlflow_client, experiment, root, name, group)
            | process_tags()
            | ({MARK_TAG: mark} if mark else {})
        )
        run = mlflow_client.create_run(experiment, run_name=name, tags=tags)
    else:
        mlflow_client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in process_tags().items()])
        if run.info.status != "RUNNING":
            mlflow_client.update_run(run.info.run_id, status="RUNNING")
    if not run.inputs.dataset_inputs and (data := data_input(params)) is not None:
        mlflow_client.log_inputs(run.info.run_id, [data])
    log_new_params(mlflow_client, run.info.run_id, params, run.data.params)
    return str(run.info.run_id)


def log_new_params(
    mlflow_client: MlflowClient, run_id: str, params: Mapping[str, object], known: Mapping[str, object]
) -> None:
    """Record parameters of a run that it does not know."""
    from mlflow.entities import Param

    new = [Param(key, str(value)) for key, value in params.items() if key not in known]
    if new:
        mlflow_client.log_batch(run_id, params=new)


def experiment_id(mlflow_client: MlflowClient, root: Path) -> str:
    """The experiment that all runs are in, made if there is none.

    Raises:
        InputError: if it lies in MLflow's trash.
    """
    experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        # a server proxies artifacts
        file = sqlite_file(tracking_uri(root))
        location = artifacts_folder(file).as_uri() if file else None
        try:
            return str(mlflow_client.create_experiment(EXPERIMENT, artifact_location=location))
        except Exception:  # another process made it in between
            experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"MLflow at {public_uri(tracking_uri(root))}: experiment '{EXPERIMENT}' lies in the trash; take it out by "
            f"'mlflow experiments restore --experiment-id {experiment.experiment_id}', or delete it for good by "
            f"'mlflow gc --experiment-ids {experiment.experiment_id}'"
        )
    return str(experiment.experiment_id)


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
            hours = (time.time() - run.info.start_time / 1000) / 3600
            if has_ended(run) or (not _is_here(run) and older_than_hours is not None and hours > older_than_hours):
                mlflow_client.set_terminated(run.info.run_id, status="KILLED")
                say(f"KILLED {run.info.run_name} ({run.info.run_id}), began {hours:.1f} hours ago")
                closed += 1
    return closed


def has_ended(run: Run) -> bool:
    """Whether nobody feeds a run any more: it says so, or its process on this machine is gone."""
    return run.info.status != "RUNNING" or (_is_here(run) and not is_running(int(run.data.tags[PID_TAG])))


def _is_here(run: Run) -> bool:
    return bool(run.data.tags.get(HOST_TAG) == socket.gethostname())


def close_pipeline_runs(root: Path, pipeline_run: str) -> int:
    """End what a Kubeflow run left RUNNING, such as a training killed for memory; returns how many there were."""
    closed = 0
    with mlflow_errors(root):
        mlflow_client = client(root)
        for run in _running(mlflow_client, equals(f"tags.`{PIPELINE_RUN_TAG}`", pipeline_run)):
            mlflow_client.set_terminated(run.info.run_id, status="KILLED")
            closed += 1
    return closed


def _running(mlflow_client: MlflowClient, *conditions: str) -> list[Run]:
    experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    condition = " and ".join(("attributes.status = 'RUNNING'", *conditions))
    return list(every(mlflow_client.search_runs, [experiment.experiment_id], condition))

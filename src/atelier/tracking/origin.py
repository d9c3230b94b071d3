"""What an MLflow run says of where it came from: its process, its code, its data, the pipeline run it is part of."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

PIPELINE_RUN = "ATELIER_PIPELINE_RUN"  # in the environment: the pipeline run that a stage belongs to
PIPELINE_RUN_TAG = "atelier.pipeline_run"
PARENT_TAG = "mlflow.parentRunId"
HOST_TAG = "atelier.host"
PID_TAG = "atelier.pid"


def process_tags() -> dict[str, str]:
    """Which process feeds a run: how `atelier runs close` knows that it is gone."""
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid())}


def origin_tags(mlflow_client: MlflowClient, experiment_id: str) -> dict[str, str]:
    """User, source and git commit as MLflow finds them; the pipeline run, nested in which the run is shown."""
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = resolve_tags()
    pipeline_run = os.environ.get(PIPELINE_RUN) or os.environ.get("DVC_EXP_NAME")
    if pipeline_run:
        tags[PIPELINE_RUN_TAG] = pipeline_run
        tags[PARENT_TAG] = _parent(mlflow_client, experiment_id, pipeline_run)
    return tags


def _parent(mlflow_client: MlflowClient, experiment_id: str, pipeline_run: str) -> str:
    """The run that stands for a pipeline run; of two made at the same time the first one stays."""
    made = None
    while True:
        found = mlflow_client.search_runs(
            [experiment_id],
            f"tags.`atelier.pipeline` = '{pipeline_run}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
        if found:
            first = str(found[0].info.run_id)
            if made is not None and made != first:
                mlflow_client.delete_run(made)
            return first
        made = str(
            mlflow_client.create_run(
                experiment_id, run_name=pipeline_run, tags={"atelier.pipeline": pipeline_run}
            ).info.run_id
        )
        mlflow_client.set_terminated(made)  # it holds other runs and has no work of its own


def data_input(params: dict[str, Any]) -> DatasetInput | None:
    """The training data by DVC's digest, if the parameters say it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if "data_dvc_md5" not in params:
        return None
    source = {"path": f"data/prepared/{params['dataset']}", "md5": params["data_dvc_md5"]}
    dataset = Dataset(params["dataset"], params["data_dvc_md5"], source_type="dvc", source=json.dumps(source))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])

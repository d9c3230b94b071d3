"""What an MLflow run says of where it came from: its process, its code, its data, the pipeline run it is part of."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.errors import AtelierError
from atelier.processes import CommandMissing, clean_environment, run
from atelier.tracking.store import equals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

PIPELINE_RUN = "ATELIER_PIPELINE_RUN"  # in the environment: the pipeline run that a stage belongs to
GIT_COMMIT = "ATELIER_GIT_COMMIT"  # in the environment: of an image, or of the workspace that a stage is part of
PIPELINE_RUN_TAG = "atelier.pipeline_run"
PIPELINE_TAG = "atelier.pipeline"  # of the run that stands for a pipeline run
GROUP_TAG = "atelier.seeds"  # of the run that stands for the trainings of several seeds
PARENT_TAG = "mlflow.parentRunId"
HOST_TAG = "atelier.host"
PID_TAG = "atelier.pid"


@dataclass(frozen=True)
class Code:
    """The commit that a folder is at, and whether it has no changes beside."""

    commit: str
    clean: bool


def process_tags() -> dict[str, str]:
    """Which process feeds a run: how `atelier runs close` knows that it is gone."""
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid())}


def origin_tags(
    mlflow_client: MlflowClient, experiment_id: str, root: Path, name: str = "", group: str = ""
) -> dict[str, str]:
    """User, source and git commit of the workspace; the pipeline run, nested in which the run is shown.

    With a `group`, the run of several trainings of this name, it is nested in that one, which is nested in the former.
    """
    from mlflow.tracking.context.default_context import DefaultRunContext
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags

    # MLflow itself would look for the user in /etc/passwd alone, and for the repository of the command, not of the work
    ours = {"mlflow.user": user_name(), "mlflow.source.name": "atelier", "mlflow.source.type": "LOCAL"}
    if (commit := commit_of(root)) is not None:
        ours["mlflow.source.git.commit"] = commit
    tags: dict[str, str] = resolve_tags(ours, ignore=[DefaultRunContext, GitRunContext])
    if pipeline_run := os.environ.get(PIPELINE_RUN) or os.environ.get("DVC_EXP_NAME"):
        parent = _parent(mlflow_client, experiment_id, PIPELINE_TAG, pipeline_run, pipeline_run, tags)
        tags |= {PIPELINE_RUN_TAG: pipeline_run, PARENT_TAG: parent}
    if group:
        parent = os.environ.get("MLFLOW_RUN_ID") or _parent(mlflow_client, experiment_id, GROUP_TAG, group, name, tags)
        tags = tags | {PARENT_TAG: parent}
    return tags


def user_name() -> str:
    """Who runs this: the user of MLflow, or of the machine, who in a container may have a number and no name."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def code_of(root: Path) -> Code | None:
    """What git says of a folder; None if it is in no checkout, has no commit yet, or there is no git.

    Raises:
        AtelierError: if git is there and refuses, as it does a checkout of another user.
    """
    # dvc.lock changes while a pipeline runs; it says what was made, not how
    status = git(root, "status", "--porcelain=v2", "--branch", "--", ".", ":!dvc.lock")
    lines = (status or "").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if commit == "(initial)" else Code(commit, all(line.startswith("#") for line in lines))


def commit_of(root: Path) -> str | None:
    """The commit of a folder for an MLflow run: by git, or by the environment of a stage that has no checkout."""
    try:
        code = code_of(root)
    except AtelierError:  # a training is not held up; `atelier register` says it
        return None
    known = os.environ.get(GIT_COMMIT, "")
    return code.commit if code else known if re.fullmatch("[0-9a-f]{40,64}", known) else None


def git(root: Path, *arguments: str) -> str | None:
    """What git answers about a folder; None if it is in no checkout, or there is no git.

    Raises:
        AtelierError: if git refuses, with all that it says.
    """
    said: list[str] = []
    try:
        return run(
            ["git", "-C", str(root), *arguments],
            what="git",
            env=clean_environment() | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            say=said.append,
        ).strip()
    except CommandMissing:
        return None
    except AtelierError:
        text = " ".join(line.strip() for line in said if line.strip())
        if "not a git repository (or any" in text:
            return None
        raise AtelierError(f"{root}: git {arguments[0]}: {text or 'failed'}") from None


def _parent(
    mlflow_client: MlflowClient,
    experiment_id: str,
    tag: str,
    value: str,
    name: str,
    tags: Mapping[str, str],
) -> str:
    """The run that stands for others and bears this tag; of two made at the same time the first one stays."""
    made = None
    while True:
        found = mlflow_client.search_runs(
            [experiment_id],
            equals(f"tags.`{tag}`", value),
            max_results=1,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
        if found:
            first = str(found[0].info.run_id)
            if made is not None and made != first:
                mlflow_client.delete_run(made)
            return first
        run = mlflow_client.create_run(experiment_id, run_name=name, tags={**tags, tag: value})
        made = str(run.info.run_id)
        mlflow_client.set_terminated(made)  # it holds other runs and has no work of its own


def data_input(params: Mapping[str, object]) -> DatasetInput | None:
    """The training data by DVC's digest, if the parameters say it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if "data_dvc_md5" not in params:
        return None
    name, md5 = str(params["dataset"]), str(params["data_dvc_md5"])
    source = {"path": f"data/prepared/{name}", "md5": md5}
    dataset = Dataset(name, md5, source_type="dvc", source=json.dumps(source))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])

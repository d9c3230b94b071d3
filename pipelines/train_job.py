"""The stage `train` as a TrainJob: the workspace lies on a volume that its nodes share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from atelier.errors import InputError
from atelier.pipelines.launcher import Job, Launcher, api_client, job_name
from atelier.pipelines.workspace import WORKSPACES, Artifact, errors_in_one_line, fill, take, workspace
from atelier.tracking.origin import PIPELINE_RUN

RUNTIME = "atelier-torch"  # a TrainingRuntime of deploy/


def train_on_nodes(
    name: str,
    params: Artifact,
    sections: Mapping[str, Any],
    data: Iterable[Artifact],
    outputs: Mapping[str, Artifact],
    image: str,
    nodes: int,
    processes: int,
    deadline_hours: float,
) -> str:
    """Train a run on `nodes` nodes of `processes` GPUs; as `run_stage`, with the same outputs and digest.

    A try after a failed one finds its workspace, and trains on from the checkpoints in it.
    """
    with errors_in_one_line():
        if WORKSPACES not in os.environ:
            raise InputError("training on several nodes needs a volume that they share: compile with --volume")
        run_id = os.environ[PIPELINE_RUN]
        with workspace(f"train-{name}") as root:
            fill(root, params, sections, data)
            job = Job(
                name=job_name(run_id, f"train-{name}"),
                namespace=os.environ["POD_NAMESPACE"],
                runtime=RUNTIME,
                image=image,
                command=("torchrun", "-m", "atelier", "train", name, "--root", str(root)),
                nodes=nodes,
                processes=processes,
                gpus=True,
                environment={PIPELINE_RUN: run_id},
                owner=(os.environ["POD_NAME"], os.environ["POD_UID"]),
            )
            Launcher(job, deadline_hours * 3600, lambda line: print(line, flush=True), api_client()).run()
            return take(root, outputs)

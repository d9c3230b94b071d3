"""The stage `train`, in one pod."""

from typing import Any

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from atelier.components import component


@component
def train(
    run: dict[str, Any],
    train: dict[str, Any],
    processes: int,
    data_digests: list[str],
    params: Input[Artifact],
    data: Input[list[Dataset]],
    model: Output[Model],
    record: Output[Artifact],
) -> str:
    """Train a run by one process or one a GPU; returns a digest of the model and the record of its training."""
    from atelier.pipelines.workspace import run_stage

    name = run["name"]
    outputs = {f"models/{name}": model, f"runs/{name}": record}
    return run_stage("train", name, params, {"train": train}, data, outputs, processes)

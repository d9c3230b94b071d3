"""The stage `train`, on several nodes."""

from typing import Any

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from atelier.components import component


@component
def train_on_nodes(
    run: dict[str, Any],
    train: dict[str, Any],
    processes: int,
    nodes: int,
    image: str,
    deadline_hours: float,
    data_digests: list[str],
    params: Input[Artifact],
    data: Input[list[Dataset]],
    model: Output[Model],
    record: Output[Artifact],
) -> str:
    """Train a run as a TrainJob; returns a digest of the model and the record of its training."""
    from atelier.pipelines.train_job import train_on_nodes

    name = run["name"]
    outputs = {f"models/{name}": model, f"runs/{name}": record}
    return train_on_nodes(name, params, {"train": train}, data, outputs, image, nodes, processes, deadline_hours)

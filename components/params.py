"""The parameters of a pipeline run as `params.yaml`: read, and refused if wrong, before any stage runs."""

from typing import Any

from kfp.dsl import Artifact, Output

from atelier.components import component


@component
def params(
    datasets: list[str],
    runs: list[dict[str, Any]],
    ingest: dict[str, Any],
    prepare: dict[str, Any],
    reference: dict[str, Any],
    train: dict[str, Any],
    evaluate: dict[str, Any],
    register: dict[str, Any],
    compare: dict[str, Any],
    params: Output[Artifact],
) -> None:
    """Write `params.yaml` from the pipeline's parameters; a run is its entry and its name."""
    from atelier.pipelines.workspace import write_params

    entries = {run["name"]: {key: value for key, value in run.items() if key != "name"} for run in runs}
    values = {
        "datasets": datasets,
        "runs": entries,
        "ingest": ingest,
        "prepare": prepare,
        "reference": reference,
        "train": train,
        "evaluate": evaluate,
        "register": register,
        "compare": compare,
    }
    write_params(values, params)

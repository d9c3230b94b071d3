"""The stage `register`."""

from typing import Any

from kfp.dsl import Artifact, Input, Model, Output

from atelier.components import component


@component
def register(
    run: dict[str, Any],
    register: dict[str, Any],
    params: Input[Artifact],
    model: Input[Model],
    record: Input[Artifact],
    report: Input[Artifact],
    version: Output[Artifact],
    registered: Output[Artifact],
) -> str:
    """Make a run a version in the MLflow registry; returns a digest of what describes the version."""
    from atelier.pipelines.workspace import run_stage

    name = run["name"]
    outputs = {f"registry/{name}.json": version, f"runs/{name}": registered}
    return run_stage("register", name, params, {"register": register}, [model, record, report], outputs)

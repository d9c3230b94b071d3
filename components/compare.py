"""The stage `compare`."""

from typing import Any

from kfp.dsl import HTML, Artifact, Input, Model, Output

from atelier.components import component


@component
def compare(
    compare: dict[str, Any],
    version_digests: list[str],
    params: Input[Artifact],
    models: Input[list[Model]],
    records: Input[list[Artifact]],
    reports: Input[list[Artifact]],
    versions: Input[list[Artifact]],
    page: Output[HTML],
    summary: Output[Artifact],
) -> str:
    """Write the report over all runs, which shows on Kubeflow's page of the run; returns its digest."""
    from atelier.pipelines.workspace import run_stage

    inputs = [*models, *records, *reports, *versions]
    outputs = {"reports/index.html": page, "reports/summary.json": summary}
    return run_stage("compare", None, params, {"compare": compare}, inputs, outputs)

"""The stage `evaluate`."""

from typing import Any

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from atelier.components import component


@component
def evaluate(
    run: dict[str, Any],
    evaluate: dict[str, Any],
    model_digest: str,
    reference_digests: list[str],
    params: Input[Artifact],
    data: Input[list[Dataset]],
    measures: Input[list[Artifact]],
    model: Input[Model],
    report: Output[Artifact],
    figures: Output[Metrics],
    pictures: Output[HTML],
) -> str:
    """Judge a trained run; returns the report's digest. Figures and pictures show on Kubeflow's page of the run."""
    from atelier.pipelines.workspace import log_figures, run_stage, write_page

    name = run["name"]
    inputs = [*data, *measures, model]
    digest = run_stage("evaluate", name, params, {"evaluate": evaluate}, inputs, {f"reports/{name}": report})
    log_figures(figures, report)
    write_page(pictures, name, report, ["grid.png", "training.gif"])
    return digest

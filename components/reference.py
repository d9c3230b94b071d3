"""The stage `reference`."""

from typing import Any

from kfp.dsl import Artifact, Dataset, Input, Output

from atelier.components import component


@component
def reference(
    dataset: str,
    evaluate: dict[str, Any],
    reference: dict[str, Any],
    data_digest: str,
    params: Input[Artifact],
    data: Input[Dataset],
    measure: Output[Artifact],
) -> str:
    """Make what distances on a data set are measured with; returns its digest."""
    from atelier.pipelines.workspace import run_stage

    sections = {"evaluate": evaluate, "reference": reference}
    return run_stage("reference", dataset, params, sections, [data], {f"reference/{dataset}": measure})

"""The stage `ingest`, and what stands for it where the data have a version already."""

from typing import Any

from kfp.dsl import Artifact, Dataset, Input, Output

from atelier.components import component


@component
def ingest(
    dataset: str,
    ingest: dict[str, Any],
    repository: str,
    revision: str,
    dvc_remote: str,
    params: Input[Artifact],
    raw: Output[Dataset],
) -> str:
    """Raw files of a data set, as dvc.lock of a commit has them or fetched and verified; returns their digest."""
    from atelier.pipelines.workspace import ingest_version, run_stage

    outputs = {f"data/raw/{dataset}": raw}
    if revision or dvc_remote:
        return ingest_version(dataset, params, {"ingest": ingest}, outputs, repository, revision, dvc_remote)
    return run_stage("ingest", dataset, params, {"ingest": ingest}, [], outputs)

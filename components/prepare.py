"""The stage `prepare`."""

from typing import Any

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from atelier.components import component


@component
def prepare(
    dataset: str,
    prepare: dict[str, Any],
    raw_digest: str,
    params: Input[Artifact],
    raw: Input[Dataset],
    data: Output[Dataset],
    contact_sheet: Output[HTML],
) -> str:
    """Turn raw files into arrays, labels, a card and a contact sheet; returns their digest."""
    from atelier.pipelines.workspace import run_stage, write_page

    digest = run_stage("prepare", dataset, params, {"prepare": prepare}, [raw], {f"data/prepared/{dataset}": data})
    write_page(contact_sheet, dataset, data, ["contact-sheet.png"])
    return digest

"""The stages as Kubeflow components; each runs the command of its name, as `dvc repro` does.

`params` is what a stage reads of `params.yaml`, and no more. Kubeflow's cache knows a stage by its parameters, by
value, and by its input artifacts, each of which is another if it was made anew: what runs again is what can differ.

kfp takes the source of each function, and of nothing around it: a function imports what it needs.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

IMAGE = "atelier"  # `atelier pipeline compile --image` puts a digest in its place


def component(function: Callable[..., Any]) -> Any:
    """A component that runs in the project's image, which has all it needs: pods install nothing."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)


@component
def ingest(
    dataset: str, params: dict[str, Any], repository: str, revision: str, dvc_remote: str, raw: Output[Dataset]
) -> None:
    """Raw files of a data set, as dvc.lock of a commit has them or fetched and verified."""
    from atelier.components.launcher import require_nodes
    from atelier.components.workspace import ingest_version, run_stage

    require_nodes()
    outputs = {f"data/raw/{dataset}": raw}
    if revision or dvc_remote:
        ingest_version(dataset, params, outputs, repository, revision, dvc_remote)
    else:
        run_stage("ingest", dataset, params, [], outputs)


@component
def prepare(
    dataset: str,
    params: dict[str, Any],
    raw: Input[Dataset],
    data: Output[Dataset],
    contact_sheet: Output[HTML],
) -> None:
    """Turn raw files into arrays, labels, a card and a contact sheet."""
    from atelier.components.workspace import run_stage, write_page

    run_stage("prepare", dataset, params, [raw], {f"data/prepared/{dataset}": data})
    write_page(contact_sheet, dataset, data, ["contact-sheet.png"])


@component
def reference(dataset: str, params: dict[str, Any], data: Input[Dataset], measure: Output[Artifact]) -> None:
    """Make what distances on a data set are measured with."""
    from atelier.components.workspace import run_stage

    run_stage("reference", dataset, params, [data], {f"reference/{dataset}": measure})


@component
def train(
    run: str,
    params: dict[str, Any],
    processes: int,
    data: Input[Dataset],
    model: Output[Model],
    record: Output[Artifact],
) -> None:
    """Train a run by one process, or by one a GPU."""
    from atelier.components.workspace import run_stage

    run_stage("train", run, params, [data], {f"models/{run}": model, f"runs/{run}": record}, processes)


@component
def train_on_nodes(
    run: str,
    params: dict[str, Any],
    nodes: int,
    gpus: int,
    image: str,
    deadline_hours: float,
    data: Input[Dataset],
    model: Output[Model],
    record: Output[Artifact],
) -> None:
    """Train a run as a TrainJob."""
    from atelier.components.launcher import train_on_nodes

    outputs = {f"models/{run}": model, f"runs/{run}": record}
    train_on_nodes(run, params, [data], outputs, image, nodes, gpus, deadline_hours)


@component
def evaluate(
    run: str,
    params: dict[str, Any],
    data: Input[Dataset],
    measure: Input[Artifact],
    model: Input[Model],
    report: Output[Artifact],
    figures: Output[Metrics],
    pictures: Output[HTML],
) -> None:
    """Judge a trained run; figures and pictures show on Kubeflow's page of the run."""
    from atelier.components.workspace import log_figures, run_stage, write_page

    run_stage("evaluate", run, params, [data, measure, model], {f"reports/{run}": report})
    log_figures(figures, report)
    write_page(pictures, run, report, ["grid.png", "training.gif"])


@component
def register(
    run: str,
    params: dict[str, Any],
    model: Input[Model],
    record: Input[Artifact],
    report: Input[Artifact],
    version: Output[Artifact],
    registered: Output[Artifact],
) -> None:
    """Make a run a version in the MLflow registry, whose number joins the record of the training."""
    from atelier.components.workspace import run_stage

    outputs = {f"registry/{run}.json": version, f"runs/{run}": registered}
    run_stage("register", run, params, [model, record, report], outputs)


@component
def compare(
    params: dict[str, Any],
    models: Input[list[Model]],
    records: Input[list[Artifact]],
    reports: Input[list[Artifact]],
    versions: Input[list[Artifact]],
    page: Output[HTML],
    summary: Output[Artifact],
    curves: Output[Artifact],
) -> None:
    """Write the report over all runs, which shows on Kubeflow's page of the run."""
    from atelier.components.workspace import run_stage

    outputs = {"reports/index.html": page, "reports/summary.json": summary, "reports/curves.csv": curves}
    run_stage("compare", None, params, [*models, *records, *reports, *versions], outputs)


@component
def promote(params: dict[str, Any], alias: str, records: Input[list[Artifact]], decisions: Output[HTML]) -> None:
    """Promote each version that the run made if it passes the gates; what was decided shows on Kubeflow's page."""
    from atelier.components.promotion import promote_versions

    promote_versions(params, alias, records, decisions)


@component
def search(
    search: str,
    params: dict[str, Any],
    image: str,
    gpus: int,
    deadline_hours: float,
    data: Input[Dataset],
    found: Output[Artifact],
    page: Output[HTML],
) -> None:
    """Try settings of a run: trials as TrainJobs of an image, or processes of this step without one."""
    from atelier.components.searching import run_search

    run_search(search, params, [data], found, page, image, gpus, deadline_hours)


@component
def close_runs() -> None:
    """What a pipeline does at its end, however it ends: nothing of it trains on, no MLflow run stays open."""
    from atelier.components.launcher import close_pipeline

    close_pipeline()

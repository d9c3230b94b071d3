"""The stage `register`: a judged model becomes a version in the MLflow registry.

`registry/RUN.json` says what was registered, and is the same wherever that is; the version's number in this workspace's
store stands in `version.json` of the `record_folder`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config import Params
from atelier.config.records import ModelConfig, Registration, Report, VersionRecord
from atelier.errors import AtelierError, InputError
from atelier.files import digest, folder_digest, hold
from atelier.journal import record_folder
from atelier.registry.lineage import (
    CLEAN_TAG,
    COMMIT_TAG,
    ONNX_TAG,
    PACKAGE_TAG,
    REPORT_TAG,
    WHEEL_TAG,
    existing_version,
    lineage_tags,
    make_version,
    uri_of,
)
from atelier.registry.onnx_export import export_onnx
from atelier.registry.package import PACKAGE, description, log_package, make_package, model_card, smoke_test
from atelier.registry.wheel import write_wheel
from atelier.sampler import Sampler
from atelier.tracking import client, mlflow_errors, run_params
from atelier.tracking.feed import finish_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def register(run_name: str, params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Log report and model to the training's MLflow run, try the model in a fresh process, and make the version.

    The same weights and report registered twice give the same version.

    Raises:
        InputError: if the model or its report is missing, or they do not belong together.
        AtelierError: if MLflow does not answer, git refuses to name the commit, or the packaged model does not load;
            no version is made then.
    """
    run = params.run(run_name)
    name = params.register_.prefix + params.register_.name.format(run=run_name, dataset=run.dataset, model=run.model)
    model_folder, report_folder = root / "models" / run_name, root / "reports" / run_name
    sampler = Sampler.load(model_folder, root)
    config = sampler.config
    weights_sha256 = config.sampler_sha256
    metrics = Report.read(report_folder / Report.file, f"atelier evaluate {run_name}")
    if metrics.weights_sha256 != weights_sha256:
        raise InputError(
            f"{report_folder}: judges other weights than {model_folder}; run 'atelier evaluate {run_name}'"
        )
    report_sha256 = folder_digest(report_folder)
    record = record_folder(root, run_name, weights_sha256)
    tags = lineage_tags(root, params, config, metrics) | {REPORT_TAG: report_sha256}

    path = root / "registry" / f"{run_name}.json"
    with hold(path), mlflow_errors(root):
        mlflow_client = client(root)
        journal = model_folder / "journal.jsonl"
        run_id = finish_run(root, run_name, run_params(config), journal, record)
        version = existing_version(mlflow_client, name, tags)
        if version is None:
            _log_report(mlflow_client, run_id, report_folder, metrics, config, model_folder)
            card = model_card(name, run, config, metrics, tags)
            with tempfile.TemporaryDirectory() as folder:
                content = make_package(Path(folder) / PACKAGE, model_folder, report_folder, card)
                tags |= {WHEEL_TAG: digest(write_wheel(content))} | add_onnx(sampler, content, say)
                tags[PACKAGE_TAG] = folder_digest(content)
                package = log_package(run_id, content, config)
            try:
                smoke_test(root, package.model_uri)
            except BaseException:
                with contextlib.suppress(Exception):
                    mlflow_client.delete_logged_model(package.model_id)
                raise
            version = make_version(mlflow_client, name, package, run_id, tags, description(card, package.model_id))
        else:
            _require_files(mlflow_client, version)
        mlflow_client.set_terminated(run_id, status="FINISHED")
    registration = Registration(
        name=name, code_sha256=config.code_sha256, weights_sha256=weights_sha256, report_sha256=report_sha256
    )
    VersionRecord(
        **dict(registration),
        version=int(version.version),
        uri=uri_of(version),
        run_id=version.run_id,
        commit=version.tags.get(COMMIT_TAG),
        clean=version.tags.get(CLEAN_TAG) == "true" if CLEAN_TAG in version.tags else None,
    ).write(record / "version.json")
    registration.write(path)
    say(f"registered {uri_of(version)}")
    return path


def add_onnx(sampler: Sampler, package: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Put the sampler as ONNX into a package; the tag of its digest, none where ONNX cannot say what it does."""
    path = package / "sampler.onnx"
    try:
        export_onnx(sampler, path)
    except AtelierError as error:
        say(f"the version has no {path.name}: {error}")
        return {}
    return {ONNX_TAG: digest(path)}


def _require_files(mlflow_client: MlflowClient, version: ModelVersion) -> None:
    """A version whose files were removed from the artifact store is none that could be registered again."""
    from mlflow.artifacts import list_artifacts

    source = mlflow_client.get_model_version_download_uri(version.name, version.version)
    if not list_artifacts(artifact_uri=f"{source}/data/{PACKAGE}"):
        raise AtelierError(
            f"{uri_of(version)}: registered, but its files are gone from {source}; bring them back, or delete this "
            "version in MLflow and register again"
        )


def _log_report(
    mlflow_client: MlflowClient,
    run_id: str,
    report_folder: Path,
    metrics: Report,
    config: ModelConfig,
    model_folder: Path,
) -> None:
    """The figures as metrics at the end of training, the whole report as artifacts.

    They are in groups, which MLflow folds: `eval/`, `floor/`, `std/`. A training has an `elbo` too, of its batches.
    """
    from mlflow.entities import Metric

    step = round(config.recipe.kimg * 1000)
    known = mlflow_client.get_run(run_id).data.metrics
    values = {f"eval/{name}": value.mean for name, value in metrics.measured.items()}
    floors = {name: floor for name in metrics.measured if (floor := metrics.floor(name)) is not None}
    values |= {f"floor/{name}": floor.mean for name, floor in floors.items()}
    values |= {f"std/{name}": value.deviation for name, value in metrics.measured.items()}
    now = int(time.time() * 1000)
    new = [Metric(key, value, now, step) for key, value in values.items() if known.get(key) != value]
    mlflow_client.log_batch(run_id, metrics=new)
    mlflow_client.log_artifacts(run_id, str(report_folder), "report")
    mlflow_client.log_artifact(run_id, str(model_folder / "journal.jsonl"))

"""Versions in the registry: found, made, and what their tags say of data, code, parameters, extractors and image."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from atelier.config import Params
from atelier.config.records import Estimate, ModelConfig, Record, Report
from atelier.data.arrays import dvc_md5
from atelier.errors import InputError
from atelier.files import files_below
from atelier.models.own import FOLDER
from atelier.own import AUGMENTATION, LOSS
from atelier.own_code import CARRIED, RECIPE
from atelier.registry.gates import Judged
from atelier.tracking import ensure_registered_model, equals, every, public, public_uri, tracking_uri
from atelier.tracking.origin import code_of, git

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

WEIGHTS_TAG = "atelier.weights_sha256"
PARENT_TAG = "atelier.parent_sha256"
REPORT_TAG = "atelier.report_sha256"
PACKAGE_TAG = "atelier.package_sha256"
CODE_TAG = "atelier.code_sha256"
RECIPE_TAG = "atelier.recipe_sha256"
ONNX_TAG = "atelier.onnx_sha256"
WHEEL_TAG = "atelier.wheel_sha256"
METRICS_TAG = "atelier.metrics"  # the whole of report.json: gates need no artifact store
PARAMS_TAG = "atelier.config"
COMMIT_TAG = "atelier.git_commit"
CLEAN_TAG = "atelier.git_clean"
DATA_TAG = "atelier.dvc_md5."  # and the folder
ORIGIN_TAG = "atelier.copied_from"


def lineage_tags(root: Path, params: Params, config: ModelConfig, metrics: Report) -> dict[str, str]:
    """The tags of a model version, which do not say again what its config and its report say.

    What cannot be known (no git, no data here, no image) is left out, never guessed.

    Raises:
        AtelierError: if git is there and refuses to say.
    """
    tags = {
        "atelier.run": config.run,
        "atelier.model": config.model,
        "atelier.dataset": config.dataset,
        WEIGHTS_TAG: config.sampler_sha256,
        PARAMS_TAG: json.dumps(_parameters(params, config)),
        "atelier.versions": json.dumps(config.versions, sort_keys=True),
        METRICS_TAG: json.dumps(metrics.model_dump(mode="json")),
    }
    for kind in ("raw", "prepared"):
        folder = root / "data" / kind / config.dataset
        if folder.is_dir():
            tags[f"{DATA_TAG}data.{kind}.{config.dataset}"] = dvc_md5(folder)
    if config.parent_sha256:
        tags[PARENT_TAG] = config.parent_sha256
    if config.code_sha256:
        tags[CODE_TAG] = config.code_sha256
    if config.recipe_sha256:
        tags[RECIPE_TAG] = config.recipe_sha256
    if (code := code_of(root)) is not None:
        clean = code.clean and _is_committed(root, config.run)
        tags |= {COMMIT_TAG: code.commit, CLEAN_TAG: str(clean).lower()}
    if digest := os.environ.get("ATELIER_IMAGE_DIGEST"):
        tags["atelier.image_digest"] = digest
    return tags


def _is_committed(root: Path, run: str) -> bool:
    """Whether git has the files of a run's own model and of its own losses, which may stand among what it ignores."""
    model = root / "models" / run
    names = workspace_files(model / CARRIED) + workspace_files(model / RECIPE)
    return not names or len((git(root, "ls-files", "--", *names) or "").splitlines()) == len(names)


def workspace_files(carried: Path) -> list[str]:
    """Which of the sources that a trained model carries are a workspace's, by their paths there."""
    folders = (FOLDER, LOSS.folder, AUGMENTATION.folder)
    return [path.relative_to(carried).as_posix() for folder in folders for path in files_below(carried / folder)]


def _parameters(params: Params, config: ModelConfig) -> dict[str, Any]:
    """What `atelier reproduce` sets in the params.yaml of the recorded commit, which may have held other values."""
    recipe = config.recipe.model_dump(exclude_none=True)
    return {
        "runs": {config.run: {"dataset": config.dataset, "model": config.model} | recipe},
        "train": params.train.model_dump(),
        "prepare": params.prepare.model_dump(exclude_none=True),
    }


class _Metrics(Record):
    """The part of a report that thresholds are held against: all there is where it says no conditions."""

    what: ClassVar = "a report"

    metrics: dict[str, Estimate]
    conditions: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        metrics = {key: one for key, one in value.items() if isinstance(one, dict) and "mean" in one}
        return {"metrics": metrics, "conditions": value.get("conditions", {})}


def judged(version: ModelVersion) -> Judged:
    """What a version was registered with.

    Raises:
        InputError: if it bears no metrics.
        AtelierError: if what it bears is damaged.
    """
    if METRICS_TAG not in version.tags:
        raise InputError(f"{uri_of(version)}: bears no metrics, it was not made by 'atelier register'")
    report = version.tags[METRICS_TAG], f"{uri_of(version)}: tag {METRICS_TAG}", "register it again"
    part = _Metrics.parse(*report)
    return Judged(part.metrics, Report.parse(*report) if part.conditions else None)


def uri_of(version: ModelVersion) -> str:
    """`models:/NAME/VERSION`."""
    return f"models:/{version.name}/{version.version}"


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, and number or alias, of `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
    match = re.fullmatch(r"models:/([^/@]+)(?:/(\d{1,18})|@([^/@]+))", uri)
    if match is None:
        raise InputError(f"{uri}: write models:/NAME/VERSION or models:/NAME@ALIAS")
    return match[1], match[2], match[3]


def find_version(mlflow_client: MlflowClient, uri: str, root: Path) -> ModelVersion:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` stands for."""
    from mlflow.exceptions import MlflowException

    name, number, alias = parse_uri(uri)
    try:
        if number is not None:
            return mlflow_client.get_model_version(name, number)
        assert alias is not None
        return mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        what = public(str(error).splitlines()[0])
        raise InputError(f"{uri}: not in {public_uri(tracking_uri(root))}: {what}") from None


def version_or_none(mlflow_client: MlflowClient, name: str, number: int) -> ModelVersion | None:
    """A version by its number; None if there is none, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def newest_version(mlflow_client: MlflowClient, name: str, root: Path) -> ModelVersion:
    """The version of the highest number; that there is none is an `InputError`."""
    found = mlflow_client.search_model_versions(equals("name", name), 1, ["version_number DESC"])
    if not found:
        where = public_uri(tracking_uri(root))
        raise InputError(f"{name}: no registered model of this name in {where}; run 'atelier register'")
    return found[0]


def pick_version(mlflow_client: MlflowClient, name: str, number: int | None, root: Path) -> ModelVersion:
    """The version of this number, or the newest."""
    newest = newest_version(mlflow_client, name, root)
    version = newest if number is None else version_or_none(mlflow_client, name, number)
    if version is None:
        raise InputError(f"models:/{name}/{number}: no such version; the newest is {newest.version}")
    return version


def existing_version(mlflow_client: MlflowClient, name: str, tags: dict[str, str]) -> ModelVersion | None:
    """The first version of the same weights and report, and of the same code of the user's own."""
    same = [equals(f"tags.`{tag}`", tags[tag]) for tag in (WEIGHTS_TAG, REPORT_TAG, CODE_TAG) if tag in tags]
    found = every(mlflow_client.search_model_versions, " and ".join([equals("name", name), *same]))
    return min(found, key=lambda version: int(version.version), default=None)


def versions_of(mlflow_client: MlflowClient, weights_sha256: str) -> list[ModelVersion]:
    """The versions of these weights, of whatever name, the oldest first."""
    found = every(mlflow_client.search_model_versions, equals(f"tags.`{WEIGHTS_TAG}`", weights_sha256))
    return sorted(found, key=lambda version: (version.creation_timestamp, version.name, int(version.version)))


def make_version(
    mlflow_client: MlflowClient, name: str, package: ModelInfo, run_id: str, tags: dict[str, str], text: str
) -> ModelVersion:
    """Make the version in one call, tags and all; of two made at the same time the first one stays."""
    ensure_registered_model(mlflow_client, name)
    made = mlflow_client.create_model_version(
        name, package.model_uri, run_id=run_id, tags=tags, description=text, model_id=package.model_id
    )
    first = existing_version(mlflow_client, name, tags)
    if first is None or first.version == made.version:
        return made
    mlflow_client.delete_model_version(name, made.version)
    return first

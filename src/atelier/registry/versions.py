"""Finding versions in the registry, and what they carry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config.records import Report
from atelier.errors import InputError
from atelier.registry.lineage import METRICS_TAG
from atelier.tracking import public_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, and number or alias, of `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
    match = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", uri)
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
        raise InputError(f"{uri}: not in {public_uri(tracking_uri(root))}: {str(error).splitlines()[0]}") from None


def find_versions(mlflow_client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a registered model, by number."""
    return {int(v.version): v for v in mlflow_client.search_model_versions(f"name = '{name}'")}


def require_versions(mlflow_client: MlflowClient, name: str, root: Path) -> dict[int, ModelVersion]:
    """All versions of a registered model, by number; that there are none is an `InputError`."""
    versions = find_versions(mlflow_client, name)
    if not versions:
        where = public_uri(tracking_uri(root))
        raise InputError(f"{name}: no registered model of this name in {where}; run 'atelier register'")
    return versions


def pick_version(mlflow_client: MlflowClient, name: str, number: int | None, root: Path) -> ModelVersion:
    """The version of this number, or the newest."""
    versions = require_versions(mlflow_client, name, root)
    if number is not None and number not in versions:
        raise InputError(f"models:/{name}/{number}: no such version; there are {', '.join(map(str, sorted(versions)))}")
    return versions[number or max(versions)]


def metrics_of(version: ModelVersion) -> Report:
    """The report that a version was registered with."""
    uri = f"models:/{version.name}/{version.version}"
    if METRICS_TAG not in version.tags:
        raise InputError(f"{uri}: bears no figures, it was not made by 'atelier register'")
    return Report.parse(version.tags[METRICS_TAG], f"{uri}, tag {METRICS_TAG}", "register it again")

"""A version taken to the registry of another environment, with its lineage, verified by digest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config.records import ModelConfig
from atelier.errors import AtelierError
from atelier.files import folder_digest
from atelier.registry.package import PACKAGE, log_package, package_folder, smoke_test
from atelier.registry.register import PACKAGE_TAG, existing_version, make_version
from atelier.tracking import client, ensure_run, mlflow_errors, public_uri, run_params, store, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ORIGIN_TAG = "atelier.copied_from"


def copy_version(version: ModelVersion, to_registry: str, root: Path, say: Callable[[str], None]) -> ModelVersion:
    """Copy a version of the workspace's registry; one that is there already is not copied again.

    The version is made last, once its artifacts came back from there unaltered and drew images in a fresh process.

    Raises:
        AtelierError: if either registry does not answer, or the artifacts are not those that were registered.
    """
    from mlflow.artifacts import download_artifacts

    origin = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory(prefix="atelier-copy-") as name:
        folder = Path(name)
        with mlflow_errors(root):
            client(root)
            package = package_folder(Path(download_artifacts(artifact_uri=origin, dst_path=str(folder / "from"))))
        _verify(package, version.tags.get(PACKAGE_TAG), f"{origin} in {public_uri(tracking_uri(root))}")
        config = ModelConfig.read(package / "model" / "config.json", "atelier register")
        tags = version.tags | {ORIGIN_TAG: f"{origin} in {public_uri(tracking_uri(root))}"}
        with store(to_registry), mlflow_errors(root):
            target = client(root)
            if there := existing_version(target, version.name, tags):
                return there
            run_id = ensure_run(root, config.run, run_params(config), None)
            made = log_package(run_id, package, config)
            target.set_terminated(run_id)
            back = package_folder(Path(download_artifacts(artifact_uri=made.model_uri, dst_path=str(folder / "to"))))
            _verify(back, version.tags[PACKAGE_TAG], f"{PACKAGE} in {public_uri(to_registry)}")
            smoke_test(root, made.model_uri)
            copy = make_version(target, version.name, made, run_id, tags, version.description or "")
    say(f"copied {origin} to {public_uri(to_registry)} as version {copy.version}")
    return copy


def _verify(package: Path, sha256: str | None, what: str) -> None:
    if folder_digest(package) != sha256:
        raise AtelierError(f"{what}: altered, its files are not those that were registered; register it again")

"""A trained model as an MLflow model: data only, no code and no pickle; tried in a fresh process before it is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import atelier
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from atelier.tracking import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

    from atelier.config.records import ModelConfig

PACKAGE = "atelier"  # the folder in an MLflow model
SMOKE_TEST = """
import sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
images = mlflow.pyfunc.load_model(sys.argv[2]).predict(pandas.DataFrame([{"n": 2, "label": None, "seed": 0}]))
assert images.dtype == "uint8" and len(images) == 2, (images.dtype, images.shape)
"""


def make_package(folder: Path, model_folder: Path, report_folder: Path, card: str) -> str:
    """Put weights, report and card into one folder; returns its digest."""
    shutil.copytree(model_folder, folder / "model")
    shutil.copytree(report_folder, folder / "report")
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return folder_digest(folder)


def log_package(run_id: str, folder: Path, config: ModelConfig) -> ModelInfo:
    """Log a package as an MLflow model of a run: data alone, which the installed atelier loads."""
    import mlflow
    import pandas as pd

    with mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(
            name="model",
            loader_module="atelier.registry.pyfunc_model",
            data_path=str(folder),
            signature=signature(config),
            input_example=(
                pd.DataFrame([{"n": 1, "label": 0 if config.class_names else None, "seed": 0, "truncation": 1.0}]),
                {"format": "array"},
            ),
            pip_requirements=[
                f"atelier-images=={atelier.__version__}",
                f"torch=={config.versions['torch'].split('+')[0]}",
            ],
        )


def signature(config: ModelConfig) -> ModelSignature:
    """Rows of n, label, seed, truncation in; uint8 images (sum of n, h, w, c) out."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    inputs = Schema(
        [
            ColSpec("long", "n"),
            # a number or none: a column of both has no type of its own
            ColSpec(AnyType(), "label", required=False),
            ColSpec("long", "seed", required=False),
            ColSpec(AnyType(), "truncation", required=False),
        ]
    )
    shape = (-1, config.height, config.width, config.channels)
    return ModelSignature(
        inputs,
        Schema([TensorSpec(np.dtype("uint8"), shape)]),
        ParamSchema([ParamSpec("format", "string", "array")]),
    )


def package_folder(download: Path) -> Path:
    """Where the package lies in a downloaded MLflow model.

    Raises:
        InputError: if it was not made by `atelier register`.
    """
    folder = download / "data" / PACKAGE
    if not (folder / "model" / "config.json").is_file():
        raise InputError(f"{download.name}: not a model registered by atelier")
    return folder


def fetch_file(version: ModelVersion, path: str) -> Path:
    """Download one file of a version's package."""
    from mlflow.artifacts import download_artifacts

    uri = f"models:/{version.name}/{version.version}/data/{PACKAGE}/{path}"
    return Path(download_artifacts(artifact_uri=uri))


def smoke_test(root: Path, model_uri: str) -> None:
    """Load the packaged model in a fresh process, as its users will, and draw two images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SMOKE_TEST, tracking_uri(root), model_uri]
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise AtelierError(f"the packaged model does not load in a fresh process, no version was made: {last}")

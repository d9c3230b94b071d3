"""A trained model as an MLflow model with a card: no pickle, no code but the user's own; tried in a fresh process."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config import Run
from atelier.config.records import TRAININGS, ModelConfig, Report
from atelier.errors import AtelierError, InputError
from atelier.evaluation.metrics import cautions
from atelier.files import folder_digest
from atelier.own_code import CARRIED
from atelier.processes import clean_environment, run
from atelier.registry.lineage import COMMIT_TAG, PACKAGE_TAG, uri_of
from atelier.registry.wheel import wheel_requirements
from atelier.tracking import public, public_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

PACKAGE = "atelier"  # the folder in an MLflow model
DESCRIPTION_LIMIT = 5000  # characters that MLflow's database keeps
SMOKE_TEST = """
import sys, mlflow, pandas
images = mlflow.pyfunc.load_model(sys.argv[1]).predict(pandas.DataFrame([{"n": 2, "label": None, "seed": 0}]))
assert images.dtype == "uint8" and len(images) == 2, (images.dtype, images.shape)
"""


def make_package(folder: Path, model_folder: Path, report_folder: Path, card: str) -> Path:
    """Put weights, report and card into one folder; returns it."""
    shutil.copytree(model_folder, folder / "model", ignore=shutil.ignore_patterns(TRAININGS))
    shutil.copytree(report_folder, folder / "report")
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return folder


def model_card(name: str, run: Run, config: ModelConfig, metrics: Report, tags: dict[str, str]) -> str:
    """Markdown with pictures by paths relative to the package's `artifacts` folder.

    A paragraph is one line: MLflow shows each end of a line.
    """
    info, conditions, classes = run.info, metrics.conditions, [plain(name) for name in config.class_names]
    title, source, licence = plain(info.title), plain(info.source), plain(info.licence)
    size = f"{config.width}×{config.height} pixels, {'grey' if config.channels == 1 else 'colour'}"
    asked = f"one of {len(classes)} classes on request ({', '.join(classes)})" if classes else "no choice of class"
    torch, commit = plain(config.versions.get("torch", "?")), tags.get(COMMIT_TAG, "unknown")
    cautioned = "".join(f" **{caution}.**" for caution in cautions(conditions))
    own = (
        ""
        if config.code_sha256 is None
        else f" It is the user's own; what builds its networks is in `model/{CARRIED}`."
    )
    features = ", ".join(f"`{one}` (sha256 {sha256[:16]}…)" for one, sha256 in conditions.extractors.items())
    started = f"Started from the weights of sha256 `{config.parent_sha256}`. " if config.parent_sha256 else ""
    recipe = ", ".join(f"{key} {plain(str(value))}" for key, value in config.recipe.model_dump().items())
    return f"""# {name}

Draws images like those of **{title}**: {size}, {asked}. Model `{config.model}`: {plain(run.entry.source)}.{own}

![Samples, a row a class where there are classes](report/grid.png)

## Metrics

| metric | mean ± standard deviation | real images in its place |
|---|---|---|
{_rows(metrics)}

{conditions.draws} draws of {conditions.fakes:,} images against {conditions.real:,} real images of the \
{conditions.real_split} split (sha256 {conditions.real_images_sha256[:16]}…), in features of {features}; \
{_deviation(metrics)}.{cautioned} Distances of other features, data or numbers of images cannot be compared with \
these, nor a distance in a classifier's features with a published FID.

## Data

{title}, {source}. Licence of the data: **{licence}**; whether pictures drawn by a model fall under it is for you to \
judge. Training images sha256 `{config.train_images_sha256}`.

## Training

{config.recipe.kimg:g} thousand images seen, on {config.device} ({config.precision}), with torch {torch}. \
{started}{recipe}. Code: commit {commit}. `atelier reproduce` trains it again and compares the weights.

## Limits

- It has seen nothing but the data above: what these lack, it lacks, and what is wrong in them it repeats.
- The metrics are averages; single images may be malformed. Whether it repeats training images is in the report, \
if that was measured.
- Its images are made up and prove nothing about the world; do not train a judge of real images on them unawares.
"""


def plain(text: str) -> str:
    """Text that is not ours, for Markdown: one line in which no character is markup or begins a tag."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _deviation(metrics: Report) -> str:
    """What the standard deviation is of."""
    trainings = max(len(value.trainings) for value in metrics.measured.values())
    if not trainings:
        return "the standard deviation is that of the draws of one training, and says nothing of the luck of its seed"
    return f"the standard deviation is that between {trainings} trainings, of which this is the one of the smallest \
validation distance"


def _rows(metrics: Report) -> str:
    rows = []
    for name, value in metrics.measured.items():
        floor = metrics.floor(name)
        rows.append(f"| {name} | {value.mean:.4g} ± {value.deviation:.2g} | {f'{floor.mean:.4g}' if floor else ''} |")
    return "\n".join(rows)


def description(card: str, model_id: str) -> str:
    """The card as MLflow shows it beside a version, its pictures where MLflow's server has them."""
    place = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path=data/{PACKAGE}/"
    text = card.replace("](report/", f"]({place}report/")
    return text if len(text) <= DESCRIPTION_LIMIT else text[: DESCRIPTION_LIMIT - 1] + "…"


def log_package(run_id: str, folder: Path, config: ModelConfig) -> ModelInfo:
    """Log a package as an MLflow model of a run, which the atelier of the wheel in it loads."""
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
                *wheel_requirements(folder, f"data/{folder.name}"),
                f"torch=={config.versions['torch'].split('+')[0]}",
                # of the user's own
                *(
                    f"{name}=={version}"
                    for name, version in config.versions.items()
                    if name not in ("atelier", "torch")
                ),
            ],
        )


def signature(config: ModelConfig) -> ModelSignature:
    """uint8 images (sum of n, h, w, c) out; what goes in is checked by the model.

    With a schema of columns MLflow would drop a misspelt one without a word, and read no CSV: a label or a truncation
    is a number or none, for which it has no type.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    shape = (-1, config.height, config.width, config.channels)
    return ModelSignature(
        outputs=Schema([TensorSpec(np.dtype("uint8"), shape)]),
        params=ParamSchema([ParamSpec("format", "string", "array")]),
    )


@contextmanager
def fetched(mlflow_client: MlflowClient, version: ModelVersion, root: Path) -> Iterator[Path]:
    """A version's package, in a folder that goes away again.

    Raises:
        InputError: if it was not made by `atelier register`.
        AtelierError: if its files are not those that were registered.
    """
    if PACKAGE_TAG not in version.tags:
        raise InputError(f"{uri_of(version)}: bears no digest of its files, it was not made by 'atelier register'")
    # not by its models:/ URI, by which MLflow writes into an embedded store, and which any other store may stand for
    source = mlflow_client.get_model_version_download_uri(version.name, version.version)
    with downloaded(source, version.tags[PACKAGE_TAG], f"{uri_of(version)} in {public_uri(tracking_uri(root))}") as it:
        yield it


@contextmanager
def downloaded(source: str, sha256: str, what: str) -> Iterator[Path]:
    """The package of the MLflow model at an artifact URI, verified by digest, in a folder that goes away again."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="atelier-fetch-") as folder:
        package = Path(download_artifacts(artifact_uri=source, dst_path=folder)) / "data" / PACKAGE
        if folder_digest(package) != sha256:
            raise AtelierError(f"{what}: altered, its files are not those that were registered; register it again")
        yield package


def smoke_test(root: Path, model_uri: str) -> None:
    """Load the packaged model in a fresh process, as its users will, and draw two images."""
    with tempfile.TemporaryDirectory(prefix="atelier-try-") as folder:
        # the URI, which may hold a password, is not for the list of processes; what MLflow fetches goes with the folder
        environment = clean_environment() | {"MLFLOW_TRACKING_URI": tracking_uri(root), "TMPDIR": folder}
        what = "the packaged model does not load in a fresh process, no version was made"
        try:
            run([sys.executable, "-c", SMOKE_TEST, model_uri], what=what, cwd=Path(folder), env=environment)
        except AtelierError as error:
            raise AtelierError(public(str(error))) from None

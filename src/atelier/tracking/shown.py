"""Pictures where MLflow's page of a run looks for them: by the steps of a training, beside its curves."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "images"  # of a run's artifacts
KEY = "train~pictures"  # `~` stands for a slash
THUMBNAIL_PIXELS = 512  # of the longer side
WHOLE = b"IEND\xaeB`\x82"  # how a PNG ends; one that a training is drawing does not yet


def pictures_sent(mlflow_client: MlflowClient, run_id: str) -> set[int]:
    """The steps of which a run has a picture."""
    names = [Path(info.path).stem for info in mlflow_client.list_artifacts(run_id, FOLDER)]
    return {int(name.split("+")[2]) for name in names if name.startswith(KEY) and name.endswith("compressed")}


def send_pictures(mlflow_client: MlflowClient, run_id: str, folder: Path, sent: set[int]) -> None:
    """Log the pictures of a training that are not among those sent, and note them there.

    The files are named as `MlflowClient.log_image` names them, which would save a picture without the mark that it
    bears. A name follows from run and step, so that what is sent twice is there once.

    Args:
        mlflow_client: of the store.
        run_id: the run.
        folder: holds the pictures, `IMAGES.png`, each named by the images seen.
        sent: steps.
    """
    from PIL import Image

    for path in sorted(folder.glob("[0-9]*.png")):
        step = int(path.stem)
        if step in sent or not (content := _whole(path)):
            continue
        if not sent:  # before the first one: a kill in between would hide all of them
            mlflow_client.set_tag(run_id, "mlflow.loggedImages", "True")
        name = f"{KEY}+step+{step}+timestamp+{step}+{uuid.uuid5(uuid.NAMESPACE_OID, f'{run_id} {step}')}"
        with tempfile.TemporaryDirectory(prefix="atelier-picture-") as place:
            picture = Path(place) / f"{name}.png"
            picture.write_bytes(content)
            thumbnail = Path(place) / f"{name}+compressed.webp"
            with Image.open(picture) as image:
                image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
                image.save(thumbnail, xmp=image.info.get("xmp", b""))
            for file in (picture, thumbnail):
                mlflow_client.log_artifact(run_id, str(file), FOLDER)
        sent.add(step)


def _whole(path: Path) -> bytes:
    """The content of a PNG; none while it is written, or if it is gone, as one drawn after a checkpoint."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content if content.endswith(WHOLE) else b""

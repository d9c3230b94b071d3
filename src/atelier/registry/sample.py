"""`atelier sample`: images from a registered version or from a model's folder, to PNG or NPZ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from atelier.errors import InputError
from atelier.files import write_atomic
from atelier.mark import Mark
from atelier.pictures import npz_bytes, png_bytes, tile
from atelier.progress import watch
from atelier.registry.lineage import find_version, parse_uri, uri_of
from atelier.registry.package import fetched
from atelier.sampler import CHUNK, Sampler
from atelier.tracking import client, mlflow_errors, require_store

MOST_IN_A_GRID = 10_000


def sample(
    model: str,
    count: int,
    seed: int,
    label: int | None,
    out: Path,
    root: Path,
    truncation: float | None = None,
    first: int = 0,
) -> Path:
    """Draw `count` images of a seed from number `first` on, to FILE.npz or a PNG grid.

    The arrays of FILE.npz are `images`, uint8 (n, h, w, c), and `labels`, -1 without.

    Raises:
        InputError: if the model does not exist, does not know the label, or is built by code that is not here.
        AtelierError: if MLflow does not answer or the weights were altered.
    """
    with folder_of(model, root) as (folder, version):
        sampler = Sampler.load(folder, root)
    _check_count(count, sampler, out)
    labels = sampler.labels(count, label, first)
    stream = sampler.stream(count, seed, labels, truncation=truncation, first=first)
    pieces = watch(stream, math.ceil(count / CHUNK), "sample", "batch")
    images, mark = np.concatenate(list(pieces)), Mark.of(sampler.config, version=version, seed=seed, label=label)
    if out.suffix == ".png":
        columns = len(sampler.class_names) if label is None and sampler.class_names else math.ceil(math.sqrt(count))
        write_atomic(out, png_bytes(tile(images, columns=min(columns, count)), mark))
    else:
        write_atomic(out, npz_bytes(mark, images=images, labels=labels if labels is not None else np.full(count, -1)))
    return out


def _check_count(count: int, sampler: Sampler, out: Path) -> None:
    """Refuse at once what could not be held, or looked at, in the end."""
    import psutil

    if out.suffix == ".png" and count > MOST_IN_A_GRID:
        raise InputError(f"--n {count}: a grid holds at most {MOST_IN_A_GRID:,} images; name a file FILE.npz")
    # the images, their pieces, and the file made of them
    wanted, free = 3 * count * sampler.image_bytes, psutil.virtual_memory().available
    if wanted > free:
        sizes = f"{wanted / 1e9:,.0f} GB of memory, {free / 1e9:,.0f} GB are free"
        raise InputError(f"--n {count}: takes {sizes}; draw fewer at a time, each with a --seed of its own")


@contextmanager
def folder_of(model: str, root: Path) -> Iterator[tuple[Path, str | None]]:
    """The model's folder and, if it is registered, its version, whose folder goes away again."""
    if not model.startswith("models:/"):
        if not (root / model).is_dir():
            raise InputError(f"{model}: no such folder; give models:/NAME/VERSION, models:/NAME@ALIAS or models/RUN")
        yield root / model, None
        return
    parse_uri(model)
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        version = find_version(mlflow_client, model, root)
        with fetched(mlflow_client, version, root) as package:
            yield package / "model", uri_of(version)

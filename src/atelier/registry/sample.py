"""`atelier sample`: images from a registered version or from a model's folder, to PNG or NPZ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.errors import InputError
from atelier.files import write_atomic
from atelier.mark import Mark
from atelier.pictures import Images, Labels, npz_bytes, png_bytes, tile
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
    if out.suffix == ".png" and count > MOST_IN_A_GRID:
        raise InputError(f"--n {count}: a grid holds at most {MOST_IN_A_GRID:,} images; name a file FILE.npz")
    return draw(sampler, version, count, seed, label, truncation, first).save(out)


@dataclass(frozen=True)
class Pictures:
    """Images that a model drew, and its mark. In a notebook they show themselves.

    Attributes:
        images: uint8 (n, h, w, c).
        labels: (n,) int64, -1 without classes.
        mark: which model drew them, and how.
        columns: of the grid that they are shown in.
    """

    images: Images
    labels: Labels
    mark: Mark
    columns: int

    def __len__(self) -> int:
        return len(self.images)

    def save(self, out: Path | str) -> Path:
        """Write FILE.png, a grid, or FILE.npz, the arrays `images` and `labels`; with the mark.

        Raises:
            InputError: if the file is to be another kind.
        """
        out = Path(out)
        if out.suffix == ".png":
            write_atomic(out, self._repr_png_())
        elif out.suffix == ".npz":
            write_atomic(out, npz_bytes(self.mark, images=self.images, labels=self.labels))
        else:
            raise InputError(f"{out}: must end in .npz or .png")
        return out

    def _repr_png_(self) -> bytes:
        return png_bytes(tile(self.images, columns=self.columns), self.mark)


def draw(
    sampler: Sampler,
    version: str | None,
    count: int,
    seed: int,
    label: int | None,
    truncation: float | None = None,
    first: int = 0,
) -> Pictures:
    """Draw `count` images of a seed from number `first` on; classes in turn, or of one `label`.

    Raises:
        InputError: if the model does not know the label, or memory does not hold so many images.
    """
    _check_count(count, sampler)
    labels = sampler.labels(count, label, first)
    stream = sampler.stream(count, seed, labels, truncation=truncation, first=first)
    images = np.concatenate(list(watch(stream, math.ceil(count / CHUNK), "sample", "batch")))
    columns = len(sampler.class_names) if label is None and sampler.class_names else math.ceil(math.sqrt(count))
    mark = Mark.of(sampler.config, version=version, seed=seed, label=label)
    return Pictures(images, np.full(count, -1) if labels is None else labels, mark, min(columns, count))


def _check_count(count: int, sampler: Sampler) -> None:
    """Refuse at once what could not be held in the end."""
    import psutil

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

"""What a training leaves: its pictures on the way, and `models/RUN/` and its record at its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from atelier.config.records import TRAININGS, ModelConfig
from atelier.errors import AtelierError
from atelier.files import atomic_directory, digest, fsync, read_limited, write_atomic
from atelier.journal import LIMIT_BYTES, record_folder
from atelier.mark import Mark
from atelier.pictures import SHEET_ROWS, SHEETS, pack_sheets, save_sheet
from atelier.sampler import Sampler, draw_noise
from atelier.tensors import save_tensors
from atelier.training.checkpoints import JOURNAL, PICTURES, TIMING
from atelier.training.method import Method


def draw_picture(method: Method, config: ModelConfig, path: Path) -> None:
    """A sheet from latents that are the same all through training, a column a class."""
    classes = len(config.class_names) or SHEET_ROWS
    labels = torch.arange(classes).repeat(SHEET_ROWS) if config.class_names else None
    noise = draw_noise(classes * SHEET_ROWS, config.noise, seed=0)
    images = Sampler(method.sampling_network(), config).render(noise, labels)
    save_sheet(path, images, classes, Mark.of(config, seed=0))
    for file in (path, path.with_suffix(".npy")):
        fsync(file)


def publish_model(method: Method, config: ModelConfig, own: Mapping[str, bytes], folder: Path, target: Path) -> None:
    """Put weights, config, journal and pictures of an ended training, whose folder is given, in their place.

    With them go the sources of what is the user's own, by their paths in that folder.
    """
    with atomic_directory(target) as partial:
        networks = {"sampler": method.sampling_network()} | method.companions()
        for name, network in networks.items():
            save_tensors(partial / f"{name}.safetensors", network.state_dict())
        weights_sha256 = {name: digest(partial / f"{name}.safetensors") for name in networks}
        config = config.model_copy(update={"weights_sha256": weights_sha256})
        config.write(partial / "config.json")
        shutil.copy(folder / JOURNAL, partial)
        shutil.copytree(folder / PICTURES, partial / PICTURES, ignore=shutil.ignore_patterns("*.npy"))
        pack_sheets(folder / PICTURES, partial / SHEETS, Mark.of(config, seed=0))
        for name, source in own.items():
            write_atomic(partial / name, source)


def publish_best(trained: Mapping[int, Path], target: Path, say: Callable[[str], None]) -> None:
    """Put the best model of several seeds in its place, and all of them below it.

    The best is that of the smallest validation distance: test images have no part in it.
    """
    distances = dict[int, float]()
    for seed, model in trained.items():
        snapshot = ModelConfig.read(model / "config.json", "atelier train").snapshot
        assert snapshot is not None
        distances[seed] = snapshot.validation_distance
    best = min(distances, key=lambda seed: distances[seed])
    with atomic_directory(target) as partial:
        shutil.copytree(trained[best], partial, dirs_exist_ok=True)
        for seed, model in trained.items():
            shutil.copytree(model, partial / TRAININGS / str(seed))
    found = ", ".join(f"{distance:.4g} (seed {seed})" for seed, distance in distances.items())
    say(f"seed {best} is kept; validation distances: {found}")


def publish_record(folder: Path, root: Path, run: str, model: Path) -> None:
    """Keep what belongs to this one training and not to the model that it made: times, and the MLflow run."""
    target = record_folder(root, run, digest(model / "sampler.safetensors"))
    for name in (TIMING, "mlflow.json"):
        if (folder / name).is_file():
            content = read_limited(folder / name, LIMIT_BYTES)
            if len(content) > LIMIT_BYTES:
                raise AtelierError(
                    f"{folder / name}: damaged, larger than {LIMIT_BYTES >> 20} MB; remove it, and run this again"
                )
            write_atomic(target / name, content)

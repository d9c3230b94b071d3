"""After training there are no GANs and no VAEs, only a sampler: (n, labels or none, seed) → uint8 images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atelier.config.records import TRAININGS, ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.models import build_sampling_network
from atelier.own_code import require_code
from atelier.tensors import load_weights

if TYPE_CHECKING:
    from atelier.pictures import Images

# Always this many at once: image i of a seed is the same whatever n, since neither the noise nor the
# arithmetic of a row depends on how many were asked for.
CHUNK = 100
MAX_TRUNCATION = 5.0  # beyond it lies one noise value in two million


def trainings(folder: Path) -> list[Path]:
    """The folders of the models of several seeds, in their order; of a model of one seed, its own."""
    found = [path for path in (folder / TRAININGS).glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name)) or [folder]


class Sampler:
    """Draws images from a trained network.

    Args:
        network: (noise (n, noise), labels (n,) or None) → images (n, c, h, w) in the model's range.
        config: of the model.
    """

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        self.network = network
        self.config = config
        self.noise = config.noise
        self.class_names = config.class_names
        parameter = next(network.parameters(), None)
        self.device = parameter.device if parameter is not None else torch.device("cpu")

    @classmethod
    def load(cls, folder: Path, root: Path | None = None) -> Sampler:
        """Load a model's folder after checking the digest of its weights; nothing in it is ever run.

        Args:
            folder: of the trained model.
            root: the workspace that the code of a model of the user's own is in.

        Raises:
            InputError: if it is not a model's folder, or its model is not known here.
            AtelierError: if the weights are not those of its config.
        """
        config_path, weights = folder / "config.json", folder / "sampler.safetensors"
        for path in (config_path, weights):
            if not path.is_file():
                raise InputError(
                    f"{path}: missing; {folder} is not a trained model, give the folder of one (models/RUN/)"
                )
        config = ModelConfig.read(config_path, "atelier train")
        if digest(weights) != config.sampler_sha256:
            raise AtelierError(f"{weights}: altered, its sha256 is not the one in config.json; restore or retrain it")
        code = require_code(config, folder, root)
        network = build_sampling_network(code, config.recipe, config.shape)
        load_weights(weights, network, f"model '{config.model}'")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network.to(device).to(memory_format=torch.channels_last).eval(), config)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        shape = self.config.shape
        return shape.height * shape.width * shape.channels

    def labels(self, count: int, label: int | None, first: int = 0) -> npt.NDArray[np.int64] | None:
        """The labels of `count` images from `first` on: all `label`, or each class in turn; None without classes."""
        if label is not None:
            if not self.class_names:
                raise InputError(f"model '{self.config.run}' is unconditional; leave the label out")
            if not 0 <= label < len(self.class_names):
                raise InputError(f"label {label}: '{self.config.run}' knows 0 to {len(self.class_names) - 1}")
        if not self.class_names:
            return None
        return np.full(count, label) if label is not None else np.arange(first, first + count) % len(self.class_names)

    def draw(
        self,
        count: int,
        seed: int,
        labels: npt.NDArray[np.int64] | None = None,
        truncation: float | None = None,
        first: int = 0,
    ) -> Images:
        """Draw `count` images, uint8 (count, h, w, c), from `first` on. Image i of a seed depends on neither.

        With `truncation`, no component of the noise is larger than that in magnitude: less variety, fewer failures
        (Brock et al., "Large Scale GAN Training", arXiv:1809.11096, section 3.1).
        """
        return np.concatenate(list(self.stream(count, seed, labels, truncation=truncation, first=first)))

    def stream(
        self,
        count: int,
        seed: int,
        labels: npt.NDArray[np.int64] | None = None,
        rank: int = 0,
        world_size: int = 1,
        truncation: float | None = None,
        first: int = 0,
    ) -> Iterator[Images]:
        """`draw` in pieces of `CHUNK`, for more images than fit in memory; of several ranks each takes its turn.

        Its labels are those of the images from `first` on. Of the pieces before, only noise is drawn.
        """
        if truncation is not None and not 0 < truncation <= MAX_TRUNCATION:
            raise InputError(f"truncation {truncation:g}: must be above 0 and at most {MAX_TRUNCATION:g}")
        if labels is None:
            labels = self.labels(count, None, first)
        generator, end = torch.Generator().manual_seed(seed), first + count
        for number, start in enumerate(range(0, end, CHUNK)):
            noise = torch.randn(CHUNK, self.noise, generator=generator)
            if truncation is not None:
                nn.init.trunc_normal_(noise, a=-truncation, b=truncation, generator=generator)
            if number % world_size != rank or start + CHUNK <= first:
                continue
            begin, chunk = max(first - start, 0), None  # of what is wanted of this piece
            if labels is not None:
                chunk = torch.zeros(CHUNK, dtype=torch.long)
                here = labels[start + begin - first : start + CHUNK - first]
                chunk[begin : begin + len(here)] = torch.from_numpy(here)
            yield self.render(noise, chunk)[begin : end - start]

    @torch.no_grad()
    def render(self, noise: Tensor, labels: Tensor | None) -> Images:
        """Images uint8 (n, h, w, c) of given noise (n, noise) and labels (n,)."""
        output = self.network(noise.to(self.device), labels.to(self.device) if labels is not None else None)
        return to_uint8(output, self.config.data_range)


def grey_values(images: Tensor, data_range: str) -> Tensor:
    """Float images in [-1, 1] ("symmetric") or [0, 1] ("unit") → float in [0, 255]."""
    unit = (images.float() + 1) / 2 if data_range == "symmetric" else images.float()
    return unit.mul(255)


def quantised(images: Tensor, data_range: str) -> Tensor:
    """Float images (n, c, h, w) in [-1, 1] ("symmetric") or [0, 1] ("unit") → uint8 (n, h, w, c), rounded."""
    return grey_values(images, data_range).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_uint8(images: Tensor, data_range: str) -> Images:
    """`quantised` as an array."""
    array: Images = quantised(images, data_range).cpu().numpy()
    return array


def draw_noise(count: int, size: int, seed: int) -> Tensor:
    """Standard normal noise (count, size) of a seed."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))

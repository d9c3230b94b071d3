"""The networks of a model, one by one as ONNX: its latents are what the playground moves through.

A GAN's latents are its noise. A VAE has three networks: `prior`, noise → codes; `decode`, codes → images, the same
name as a GAN's only one; and `encode`, images → codes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atelier.evaluation.extractors import as_input
from atelier.evaluation.likelihood import TrainedVae
from atelier.models.prior import Decoding
from atelier.registry.onnx_export import export_network
from atelier.sampler import CHUNK, Sampler, draw_noise, quantised

CODES_APART = 1e-3
PLACES = 1000  # images that the directions are found by


class _Decode(nn.Module):
    """Latents (n, latent) and labels (n,) → uint8 images (n, h, w, c)."""

    def __init__(self, network: nn.Module, data_range: str) -> None:
        super().__init__()
        self.network, self.data_range = network, data_range

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        decode = self.network.decode if isinstance(self.network, Decoding) else self.network
        return quantised(decode(latents, labels), self.data_range)


class _Encode(nn.Module):
    """Images uint8 (n, h, w, c) and labels (n,) → posterior means (n, latent)."""

    def __init__(self, encoder: nn.Module, threshold: bool) -> None:
        super().__init__()
        self.encoder, self.threshold = encoder, threshold

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        pixels = as_input(images)
        if self.threshold:
            pixels = (pixels > 0.5).float()
        mean: Tensor = self.encoder(pixels, labels)[0]
        return mean


@dataclass(frozen=True)
class Space:
    """The latents of a model as one moves through them.

    Attributes:
        means: of each class, or one of all.
        axes: two directions of length 1, along which images change most.
        spread: standard deviation of latents along each.
        centre: mean of latents along each.
    """

    means: list[list[float]]
    axes: list[list[float]]
    spread: list[float]
    centre: list[float]


class Networks:
    """The networks of a sampler, on the CPU."""

    def __init__(self, sampler: Sampler, vae: TrainedVae | None) -> None:
        network = copy.deepcopy(sampler.network).cpu().eval()
        self.sampler = sampler
        self.prior: nn.Module | None = None
        self.encode: nn.Module | None = None
        self.decode = _Decode(network, sampler.config.data_range)
        if vae is None:
            return
        self.prior = network.get_submodule("prior")
        threshold = vae.recipe.binarise or vae.recipe.dynamic_binarisation
        self.encode = _Encode(copy.deepcopy(vae.encoder).cpu(), threshold)

    @torch.no_grad()
    def export(self, folder: Path) -> list[Path]:
        """Write each as ONNX, once it has given what torch gives; `encode` as the last.

        Inputs are `noise` or `latents`, float32 (n, …), or `images`, uint8 (n, h, w, c); and, if the model has
        classes, `labels`, int64 (n,).

        Raises:
            AtelierError: if ONNX cannot say what one does.
        """
        noise, labels = zip(*(self._noise(count) for count in (2, 3)), strict=True)
        latents = [self.latents(*both) for both in zip(noise, labels, strict=True)]
        images = [self.decode(*both) for both in zip(latents, labels, strict=True)]
        steps = [
            ("prior", self.prior, "noise", noise, "latents", CODES_APART),
            ("decode", self.decode, "latents", latents, "images", 1),
            ("encode", self.encode, "images", images, "latents", CODES_APART),
        ]
        written = list[Path]()
        for name, network, taken, values, output, apart in steps:
            if network is None:
                continue
            traced, tried = (
                {taken: value} | ({} if label is None else {"labels": label})
                for value, label in zip(values, labels, strict=True)
            )
            export_network(network, traced, tried, output, folder / f"{name}.onnx", apart)
            written.append(folder / f"{name}.onnx")
        return written

    def latents(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (n, latent) of noise (n, noise) and labels (n,)."""
        found: Tensor = noise if self.prior is None else self.prior(noise, labels)
        return found

    @torch.no_grad()
    def space(self) -> Space:
        """Where its latents lie, and the two directions of their largest covariance with the pixels, class by class."""
        noise, labels = self._noise(PLACES)
        latents = self.latents(noise, labels)
        codes, groups = latents.double(), torch.zeros(PLACES, dtype=torch.long) if labels is None else labels
        for group in groups.unique():
            codes[groups == group] -= codes[groups == group].mean(dim=0)
        covariance = torch.zeros(1)
        for start in range(0, PLACES, CHUNK):  # all images at once may not fit in memory
            here = slice(start, start + CHUNK)
            images = self.decode(latents[here], None if labels is None else labels[here])
            covariance = covariance + codes[here].T @ images.flatten(1).double()
        axes = torch.zeros(2, latents.shape[1], dtype=torch.double)  # of a single latent, the second goes nowhere
        found = torch.linalg.eigh(covariance @ covariance.T)[1].flip(1).T[:2]
        # an axis has no direction of its own: its largest component shall be positive
        axes[: len(found)] = found * found.gather(1, found.abs().argmax(dim=1, keepdim=True)).sign()
        along = latents.double() @ axes.T
        return Space(
            self._means(latents.shape[1]), _rounded(axes), _rounded(along.std(dim=0)), _rounded(along.mean(dim=0))
        )

    def _means(self, size: int) -> list[list[float]]:
        """Of each class; a GAN's noise is the same for all of them."""
        if self.prior is None:
            return [[0.0] * size] * max(len(self.sampler.class_names), 1)
        means, cumulative = (self.prior.get_buffer(name).double() for name in ("mean", "cumulative"))
        weights = cumulative.diff(dim=1, prepend=torch.zeros(len(cumulative), 1, dtype=torch.double))
        found: list[list[float]] = _rounded((weights[..., None] * means).sum(dim=1))
        return found

    def _noise(self, count: int) -> tuple[Tensor, Tensor | None]:
        labels = self.sampler.labels(count, None)
        return draw_noise(count, self.sampler.noise, seed=count), None if labels is None else torch.from_numpy(labels)


def _rounded(values: Tensor) -> Any:
    """To the digits that a picture can show."""
    return values.numpy().round(5).tolist()

"""`cvae`: the project's own VAE, with or without labels, one definition from 28×28×1 to 64×64×3 and beyond.

Convolutions k4 s2 down and up with SiLU, a dense layer of 256 around a latent wider than 2, labels joined as one-hot
vectors (Sohn et al., 2015). Samples come from a Gaussian mixture a class fitted to the latents after training
(Ghosh et al., 2020), which costs seconds and was measured to gain more than any change of the networks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.models import ImageShape
from atelier.models.pyramid import smallest_side, widths
from atelier.models.recipe import Recipe

HIDDEN = 256
LOG_VARIANCE_LIMIT = 10.0  # beyond it a step would overflow, not learn


def _with_labels(features: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    if labels is None:
        return features
    return torch.cat([features, F.one_hot(labels, classes).to(features.dtype)], dim=1)


class Encoder(nn.Module):
    """Images (n, c, h, w) in [0, 1] and labels (n,) → mean and log-variance, each (n, latent)."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        self.classes = shape.classes
        channels = [shape.channels, *widths(shape.height, recipe.width)]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(channels))
        self.hidden = nn.Linear(channels[-1] * smallest_side(shape.height) ** 2 + shape.classes, HIDDEN)
        self.last = nn.Linear(HIDDEN, 2 * recipe.latent)

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode images."""
        maps = images * 2 - 1
        for down in self.downs:
            maps = F.silu(down(maps))
        features = _with_labels(maps.permute(0, 2, 3, 1).flatten(1), labels, self.classes)
        mean, log_variance = self.last(F.silu(self.hidden(features))).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


class Decoder(nn.Module):
    """Latents (n, latent) and labels (n,) → Bernoulli logits of images (n, c, h, w)."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        self.classes = shape.classes
        self.side = smallest_side(shape.height)
        channels = [*widths(shape.height, recipe.width)[::-1], shape.channels]
        self.hidden = nn.Linear(recipe.latent + shape.classes, HIDDEN)
        self.dense = nn.Linear(HIDDEN, channels[0] * self.side**2)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(channels))

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Decode latents."""
        features = F.silu(self.hidden(_with_labels(latents, labels, self.classes)))
        maps = F.silu(self.dense(features)).view(latents.shape[0], self.side, self.side, -1).permute(0, 3, 1, 2)
        for up in self.ups[:-1]:
            maps = F.silu(up(maps))
        logits: Tensor = self.ups[-1](maps)
        return logits


def encoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Build the encoder."""
    return Encoder(recipe, shape)


def decoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Build the decoder."""
    return Decoder(recipe, shape)

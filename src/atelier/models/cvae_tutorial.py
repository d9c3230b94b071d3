"""`cvae-tutorial`: TensorFlow's "Convolutional Variational Autoencoder" with a latent plane (document 004, question 2).

As there: images binarised at 0.5, one sample of z, log p(x|z) + log p(z) − log q(z|x) as it is at that sample, Adam
1e-4, batches of 32, ten epochs, Keras' Glorot initialisation and ε of 1e-7, no labels. The document calls it
conditional (2.b, 2.d): with `labels: true` the one-hot label joins z, and joins the encoder's input as one plane a
class (ten classes: encoder 30,916 parameters, decoder 57,633).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.models import ImageShape
from atelier.models.layers import Flatten, Reshape, glorot_uniform, upward
from atelier.models.recipe import Recipe


class Encoder(nn.Module):
    """Images (n, c, h, w) and labels (n,) → mean and log-variance, each (n, latent)."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        self.classes = shape.classes
        width = recipe.width
        side = shape.height // 4 - 1
        self.layers = nn.Sequential(
            nn.Conv2d(shape.channels + shape.classes, width, 3, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, 2),
            nn.ReLU(inplace=True),
            Flatten(),
            nn.Linear(side * side * 2 * width, 2 * recipe.latent),
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images."""
        if labels is not None:
            planes = F.one_hot(labels, self.classes).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, planes.expand(-1, -1, *images.shape[2:])], dim=1)
        mean, log_variance = self.layers(images).chunk(2, dim=1)
        return mean, log_variance


class Decoder(nn.Module):
    """Latents (n, latent) and labels (n,) → Bernoulli logits of images (n, c, h, w)."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        self.classes = shape.classes
        width = recipe.width
        side = shape.height // 4
        self.layers = nn.Sequential(
            nn.Linear(recipe.latent + shape.classes, side * side * width),
            nn.ReLU(inplace=True),
            Reshape(side),
            upward(width, 2 * width),
            nn.ReLU(inplace=True),
            upward(2 * width, width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, shape.channels, 3, 1, 1),
        )

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode latents."""
        if labels is not None:
            latents = torch.cat([latents, F.one_hot(labels, self.classes).to(latents.dtype)], dim=1)
        logits: Tensor = self.layers(latents)
        return logits


def encoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 13×13×32 → 6×6×64 → mean and log-variance."""
    return glorot_uniform(Encoder(recipe, shape))


def decoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 7×7×32 → 14×14×64 → 28×28×32 → logits."""
    return glorot_uniform(Decoder(recipe, shape))

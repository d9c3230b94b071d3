"""`cgan`: the project's own GAN, with or without labels, one definition from 28×28×1 to 64×64×3 and beyond.

After DCGAN (Radford et al., 2016): transposed convolutions k4 s2 with batch norm up, convolutions k4 s2 down, nothing
computed at full resolution but the last (first) layer. Labels join the noise as one-hot vectors and reach the
discriminator as a bias on its first feature maps, which was measured to matter most for small budgets.

Where a place of the smallest map sees less than half of the image's side, the discriminator looks at all places at
once in a dense layer before it judges. A sum over such places cannot tell that rare shapes are missing, such as sevens
with a bar: without that layer, distances on digits ended at twice what they end at with it. At 64×64, where places see
more, Pokémon came out worse with it (trained in bf16, without it in fp32: the two were not separated).

Maps stay in channels_last order throughout: where a gradient came back in the other order, activations cost more than
convolutions on a CPU (1.4 times the whole step).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.models import ImageShape
from atelier.models.pyramid import seen_side, smallest_side, widths
from atelier.models.recipe import Recipe

HIDDEN = 128  # features of the whole image in the discriminator; 64 were measured to be worse, 256 no better


class Generator(nn.Module):
    """Noise (n, latent) and labels (n,) → images (n, c, h, w) in [-1, 1]."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        self.classes = shape.classes
        self.side = smallest_side(shape.height)
        channels = widths(shape.height, recipe.width)[::-1]
        self.dense = nn.Linear(recipe.latent + shape.classes, channels[0] * self.side**2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(channels))
        self.last = nn.ConvTranspose2d(channels[-1], shape.channels, 4, 2, 1)

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Generate images."""
        if labels is not None:
            noise = torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        maps = self.dense(noise).view(noise.shape[0], self.side, self.side, -1).permute(0, 3, 1, 2)
        maps = F.relu(self.norms[0](maps))
        for up, norm in zip(self.ups, self.norms[1:], strict=True):
            maps = F.relu(norm(up(maps)))
        return torch.tanh(self.last(maps))


class Discriminator(nn.Module):
    """Images (n, c, h, w) in [-1, 1] and labels (n,) → logits (n,) of being real."""

    def __init__(self, recipe: Recipe, shape: ImageShape) -> None:
        super().__init__()
        channels = widths(shape.height, recipe.width)
        self.first = nn.Conv2d(shape.channels, channels[0], 4, 2, 1)
        self.embedding = nn.Embedding(shape.classes, channels[0]) if shape.classes else None
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels[1:])
        features = channels[-1] * smallest_side(shape.height) ** 2
        self.whole: nn.Module = nn.Identity()
        if 2 * seen_side(shape.height) < shape.height:
            dense = nn.Linear(features, HIDDEN, bias=False)
            self.whole = nn.Sequential(dense, nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.2))
            features = HIDDEN
        self.last = nn.Linear(features, 1)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Judge images."""
        maps = self.first(images)
        if self.embedding is not None:
            maps = maps + self.embedding(labels).to(maps.dtype)[:, :, None, None]
        maps = F.leaky_relu(maps, 0.2)
        for down, norm in zip(self.downs, self.norms, strict=True):
            maps = F.leaky_relu(norm(down(maps)), 0.2)
        logits: Tensor = self.last(self.whole(maps.permute(0, 2, 3, 1).flatten(1)))
        return logits.squeeze(1)


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Build the generator."""
    return Generator(recipe, shape)


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Build the discriminator."""
    return Discriminator(recipe, shape)

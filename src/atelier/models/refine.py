"""`refine`: a generator that begins at twice the image's side and refines it by convolutions (document 000).

The document gives the generator to the letter and the discriminator as a figure; its layers, the batch of 50, Adam
1e-4, labels of 0.9 for real images, the gated updates and their 50,000 steps are those of the published code it was
taken from. Weights and biases are normal(0, 0.02), truncated at two deviations; the discriminator's biases begin at 0.

Batch normalisation has no scale, always uses the statistics of the batch, and its shifts are not trained: that code
trains variables named "g_", and those are named "bn". Of a step's three parts (fakes, generator, real images) each is
gated by its loss at that moment, there by those of the step before; one Adam serves the discriminator's two, there two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.errors import InputError
from atelier.models import ImageShape
from atelier.models.layers import ConvSame, Flatten, Reshape, Unconditional, truncated_normal
from atelier.models.recipe import Recipe

DEVIATION = 0.02


class Generator(nn.Module):
    """Noise (n, latent) → images (n, c, h, w) in [0, 1]."""

    def __init__(self, latent: int, shape: ImageShape) -> None:
        super().__init__()
        side = 2 * shape.height
        self.dense = nn.Linear(latent, side**2)
        self.reshape = Reshape(side)
        self.norm1 = _norm(1)
        self.conv2 = ConvSame(1, latent // 2)
        self.norm2 = _norm(latent // 2)
        self.conv3 = ConvSame(latent // 2, latent // 4)
        self.norm3 = _norm(latent // 4)
        self.conv4 = nn.Conv2d(latent // 4, shape.channels, 1, stride=2)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate images; labels are not used."""
        maps = F.relu(self.norm1(self.reshape(self.dense(truncated_normal(noise)))))
        maps = twice_the_side(F.relu(self.norm2(self.conv2(maps))))
        maps = twice_the_side(F.relu(self.norm3(self.conv3(maps))))
        return torch.sigmoid(self.conv4(maps))


def twice_the_side(maps: Tensor) -> Tensor:
    """Maps (n, c, h, w) → (n, c, 2h, 2w), bilinear on TensorFlow 1's grid: even places are the map's own.

    Odd ones are the mean of their neighbours, the last is the one before it. `F.interpolate` has no such grid; padding
    for it and cutting off what is too much halves the speed of the whole step.
    """
    return _twice(_twice(maps.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)


def _twice(maps: Tensor, dim: int) -> Tensor:
    """Twice as long in `dim`: behind each place its mean with the next."""
    last = maps.shape[dim] - 1
    following = torch.cat([maps.narrow(dim, 1, last), maps.narrow(dim, last, 1)], dim)
    return torch.stack([maps, (maps + following) / 2], dim + 1).flatten(dim, dim + 1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, affine=False, track_running_stats=False)


def _initialise(network: nn.Module, biases: bool) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            assert module.bias is not None
            if biases:
                nn.init.trunc_normal_(module.bias, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            else:
                nn.init.zeros_(module.bias)
    return network


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 56×56×1 → 28×28×50 → 56×56 → 28×28×25 → 56×56 → 28×28×1."""
    if recipe.latent < 4:
        raise InputError(f"latent: model 'refine' has latent / 4 maps, and {recipe.latent} is too few; take 4 or more")
    return _initialise(Generator(recipe.latent, shape), biases=True)


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Two convolutions k5 with average pooling, 1024 → the logit of being real."""
    width = recipe.width
    return _initialise(
        Unconditional(
            nn.Conv2d(shape.channels, width, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            Flatten(),
            nn.Linear(shape.height // 4 * (shape.width // 4) * 2 * width, 32 * width),
            nn.ReLU(),
            nn.Linear(32 * width, 1),
            nn.Flatten(0),
        ),
        biases=False,
    )

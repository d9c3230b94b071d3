"""`dense`: "Concevoir votre première architecture GAN", a dense generator against convolutions (document 003, 2 and 3).

As there: Keras' Glorot initialisation, Adam(2e-4, β1 0.5, ε 1e-7) for both, and per batch a step of the discriminator
on real images, one on fakes, and one of the generator on new fakes (section 5). The document does not give the batch
or the budget; 64 and 3,000 kimg here. What is logged as the discriminator's loss is the sum of its two; the document
prints their mean.

On digits it collapses when it is trained as there: within 20 kimg all noise gives nearly one picture, which wanders and
never spreads. The discriminator's last layer sums over places what two convolutions see there, with
nothing that tells a batch of equal pictures from another. The same layers draw digits when pictures are judged eight
at a time, with R1, alternating steps and half the rate for the generator (benchmarks/systems.yaml).
"""

import math

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import ConvSame, Flatten, Unconditional, glorot_uniform
from atelier.models.recipe import Recipe


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 256 → 512 → 1024 → an image in [-1, 1]."""
    image = (shape.channels, shape.height, shape.width)
    width = recipe.width
    return glorot_uniform(
        Unconditional(
            nn.Linear(recipe.latent, width),
            nn.ReLU(),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, math.prod(image)),
            nn.Tanh(),
            nn.Unflatten(1, image),
        )
    )


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Two convolutions of stride 2 and a dense layer → the logit of being real."""
    return glorot_uniform(
        Unconditional(
            ConvSame(shape.channels, 64),
            nn.LeakyReLU(0.2),
            ConvSame(64, 128),
            nn.LeakyReLU(0.2),
            Flatten(),
            nn.Linear(shape.height // 4 * (shape.width // 4) * 128, 1),
            nn.Flatten(0),
        )
    )

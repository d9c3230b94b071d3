"""`pokemon-dense`: "un VAE sans couches convolutionnelles" on Pokémon (document 004, last question).

The notebook the document names has a dense autoencoder 12288 → 64 → 32 → 64 → 12288; the document says variational,
so the middle layer gives a mean and a log-variance of 32 numbers each (encoder 790,656 parameters, decoder 800,832).
Adam with Keras' ε of 1e-7, binary cross-entropy and 50 epochs as there. The batch is 32, which Keras takes unasked.
"""

import math

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import Unconditional, UnconditionalEncoder, glorot_uniform
from atelier.models.recipe import Recipe


def encoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 64 → mean and log-variance."""
    pixels = shape.channels * shape.height * shape.width
    return glorot_uniform(
        UnconditionalEncoder(
            nn.Flatten(),
            nn.Linear(pixels, recipe.width),
            nn.ReLU(),
            nn.Linear(recipe.width, 2 * recipe.latent),
        )
    )


def decoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 64 → logits of an image."""
    image = (shape.channels, shape.height, shape.width)
    return glorot_uniform(
        Unconditional(
            nn.Linear(recipe.latent, recipe.width),
            nn.ReLU(),
            nn.Linear(recipe.width, math.prod(image)),
            nn.Unflatten(1, image),
        )
    )

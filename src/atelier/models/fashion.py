"""`fashion`: the convolutional GAN on clothes of T. Sainburg's "2.0-GAN-fashion-mnist" (document 004, question 1).

As there: batches of 512, 117 of them an epoch, 50 epochs; both networks updated at once, from the same fakes and the
same state; Adam(1e-3, β1 0.5) for the generator, RMSprop(5e-3, ρ 0.9) for the discriminator; Keras' Glorot
initialisation and ε of 1e-7.
"""

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import Flatten, Reshape, Unconditional, glorot_uniform, upward
from atelier.models.recipe import Recipe


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 7×7×64 → 14×14×64 → 28×28×32 → an image in [0, 1]."""
    width = recipe.width
    side = shape.height // 4
    return glorot_uniform(
        Unconditional(
            nn.Linear(recipe.latent, side * side * 2 * width),
            nn.ReLU(),
            Reshape(side),
            upward(2 * width, 2 * width),
            nn.ReLU(),
            upward(2 * width, width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, shape.channels, 3, 1, 1),
            nn.Sigmoid(),
        )
    )


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 13×13×32 → 6×6×64 → the logit of being real."""
    width = recipe.width
    side = shape.height // 4 - 1
    return glorot_uniform(
        Unconditional(
            nn.Conv2d(shape.channels, width, 3, 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2),
            nn.ReLU(),
            Flatten(),
            nn.Linear(side * side * 2 * width, 1),
            nn.Flatten(0),
        )
    )

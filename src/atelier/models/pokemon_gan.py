"""`pokemon-gan`: the notebook's GAN on Pokémon (document 004, last question).

Layers as there, without batch normalisation; its author: "did not produce intelligent results". Adam 2e-4 with β1 0.5
for both, Keras' ε of 1e-7 and its Glorot initialisation as there. The document does not give the batch, the order of
steps or the budget: 32 here, the discriminator and then the generator on the same fakes, 60 kimg.
"""

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import ConvSame, Flatten, Reshape, Unconditional, glorot_uniform
from atelier.models.recipe import Recipe


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 16×16×128 → 32×32×128 → 64×64×128 → an image in [0, 1]."""
    width = recipe.width
    side = shape.height // 4
    return glorot_uniform(
        Unconditional(
            nn.Linear(recipe.latent, side * side * width),
            nn.LeakyReLU(0.2),
            Reshape(side),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, shape.channels, 7, padding=3),
            nn.Sigmoid(),
        )
    )


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 32×32×64 → 16×16×64 → the logit of being real."""
    return glorot_uniform(
        Unconditional(
            ConvSame(shape.channels, 64),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.2),
            ConvSame(64, 64),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.4),
            Flatten(),
            nn.Linear(shape.height // 4 * (shape.width // 4) * 64, 1),
            nn.Flatten(0),
        )
    )

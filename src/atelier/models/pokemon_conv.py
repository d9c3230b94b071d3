"""`pokemon-conv`: "un VAE avec couches convolutionnelles" on Pokémon (document 004, last question).

The convolutional counterpart of `pokemon-dense`, whose layers the document does not give: three convolutions k3 s2
down to 8×8, a latent of 32, the same way back (encoder 617,600 parameters, decoder 363,459). Adam, binary
cross-entropy, 50 epochs and a batch of 32 as `pokemon-dense`.
"""

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import (
    ConvSame,
    Flatten,
    Reshape,
    Unconditional,
    UnconditionalEncoder,
    glorot_uniform,
    upward,
)
from atelier.models.recipe import Recipe


def encoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 32×32×32 → 16×16×64 → 8×8×128 → mean and log-variance."""
    width = recipe.width
    side = shape.height // 8
    return glorot_uniform(
        UnconditionalEncoder(
            ConvSame(shape.channels, width),
            nn.ReLU(),
            ConvSame(width, 2 * width),
            nn.ReLU(),
            ConvSame(2 * width, 4 * width),
            nn.ReLU(),
            Flatten(),
            nn.Linear(side * side * 4 * width, 2 * recipe.latent),
        )
    )


def decoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 8×8×128 → 16×16×64 → 32×32×32 → logits of an image."""
    width = recipe.width
    side = shape.height // 8
    return glorot_uniform(
        Unconditional(
            nn.Linear(recipe.latent, side * side * 4 * width),
            nn.ReLU(),
            Reshape(side),
            upward(4 * width, 2 * width),
            nn.ReLU(),
            upward(2 * width, width),
            nn.ReLU(),
            upward(width, shape.channels),
        )
    )

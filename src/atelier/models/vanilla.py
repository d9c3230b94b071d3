"""`vanilla`: "GAN", a dense GAN on handwritten digits (document 002).

The document gives three hidden layers each way, LeakyReLU, dropout and sigmoid for the discriminator, tanh for the
generator, binary cross-entropy as the mean over a batch, Adam 2e-4 for both. It is silent on the widths (256, 512,
1024), the slope (0.2), the dropout (0.3), the batch (100), the latent size (100), the initialisation (torch's own),
the order of steps (the discriminator, then the generator on the same fakes) and the budget (6,000 kimg).
It has the generator maximise the discriminator's loss, which `loss: minimax` does; here it is the non-saturating
cross-entropy, that of fakes labelled real: the other hardly learns while the discriminator is ahead.

The sigmoid stands in the loss, here and in every GAN of this folder: the same function without its rounding.
"""

import math

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import Unconditional
from atelier.models.recipe import Recipe


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 256 → 512 → 1024 → an image in [-1, 1]."""
    image = (shape.channels, shape.height, shape.width)
    width = recipe.width
    return Unconditional(
        nn.Linear(recipe.latent, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * width, 4 * width),
        nn.LeakyReLU(0.2),
        nn.Linear(4 * width, math.prod(image)),
        nn.Tanh(),
        nn.Unflatten(1, image),
    )


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 1024 → 512 → 256 → the logit of being real."""
    width = recipe.width
    return Unconditional(
        nn.Flatten(),
        nn.Linear(shape.channels * shape.height * shape.width, 4 * width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.Linear(4 * width, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.Linear(2 * width, width),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.Linear(width, 1),
        nn.Flatten(0),
    )

"""`dense-vae`: the VAE whose likelihood is published most often, to check figures by (Burda et al., 2016, one layer).

From "Importance weighted autoencoders", section 5: a latent layer of 50 units, two layers of 200 units with tanh to
either side of it, Glorot's initialisation, Adam with ε 1e-4, and pixels drawn anew each time as 0 or 1. Trained with
one sample (k = 1, the plain VAE) its test images have a negative log-likelihood of 86.76 nats (Table 1). Otherwise than
there, batches have 200 images, not 20, the rate falls in a line, not in eight stairs over 3,280 epochs, an average over
the weights is the result, and the last bias begins at 0, not at the images' mean.
"""

import math

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import Unconditional, UnconditionalEncoder, glorot_uniform
from atelier.models.recipe import Recipe


def encoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 200 → 200 → mean and log-variance."""
    pixels, width = shape.channels * shape.height * shape.width, recipe.width
    first, second = (nn.Linear(pixels, width), nn.Tanh()), (nn.Linear(width, width), nn.Tanh())
    return glorot_uniform(UnconditionalEncoder(nn.Flatten(), *first, *second, nn.Linear(width, 2 * recipe.latent)))


def decoder(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 200 → 200 → logits of an image."""
    image, width = (shape.channels, shape.height, shape.width), recipe.width
    first, second = (nn.Linear(recipe.latent, width), nn.Tanh()), (nn.Linear(width, width), nn.Tanh())
    last = nn.Linear(width, math.prod(image)), nn.Unflatten(1, image)
    return glorot_uniform(Unconditional(*first, *second, *last))

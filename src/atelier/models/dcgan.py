"""`dcgan`: "Réseaux Antagonistes Génératifs", colour images of 64 by 64 (document 001, section 3).

The document gives the generator's maps, the first ReLU, in section 4 the loss, maximise log D(G(z)), and in section 5
plain gradient ascent of both networks from one state. It is silent on kernels and on the discriminator. Here, after
Radford et al. (2016): ReLU and tanh, a discriminator of strided convolutions k4 with LeakyReLU 0.2 that mirrors the
generator, weights N(0, 0.02) and biases zero, Adam 2e-4 with β1 0.5; unlike theirs, neither network has batch
normalisation, which the document does not mention. Transposed convolutions are k4 s2, the last convolution k3, the
batch 64, the budget 1,000 kimg.
"""

from torch import nn

from atelier.models import ImageShape
from atelier.models.layers import Flatten, Reshape, Unconditional
from atelier.models.recipe import Recipe


def _initialise(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def generator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """z → 8×8×128 → 16×16×256 → 32×32×128 → 64×64×64 → an image in [-1, 1]."""
    width = recipe.width
    side = shape.height // 8
    return _initialise(
        Unconditional(
            nn.Linear(recipe.latent, side * side * 2 * width),
            nn.ReLU(),
            Reshape(side),
            nn.ConvTranspose2d(2 * width, 4 * width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, shape.channels, 3, padding=1),
            nn.Tanh(),
        )
    )


def discriminator(recipe: Recipe, shape: ImageShape) -> nn.Module:
    """An image → 32×32×64 → 16×16×128 → 8×8×256 → the logit of being real."""
    width = recipe.width
    side = shape.height // 8
    return _initialise(
        Unconditional(
            nn.Conv2d(shape.channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            Flatten(),
            nn.Linear(side * side * 4 * width, 1),
            nn.Flatten(0),
        )
    )

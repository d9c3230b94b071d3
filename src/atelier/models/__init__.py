"""The table of models. A model is one file here that builds its networks, and one entry of `MODELS`.

One of the user's own is a file `models/NAME.py` of the workspace that holds both, its entry as `MODEL`: it
imports `GanRecipe` or `VaeRecipe`, `ImageShape` and `Model` from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from atelier.errors import AtelierError
from atelier.models.loading import load_module, not_imported
from atelier.models.recipe import Entry, GanRecipe, Recipe, VaeRecipe

if TYPE_CHECKING:
    from torch import nn

    from atelier.models.likelihood import Likelihood
    from atelier.models.prior import ClassPrior

DataRange = Literal["symmetric", "unit"]  # images in [-1, 1] or in [0, 1]


@dataclass(frozen=True)
class ImageShape:
    """Height, width and channels of the images of a data set, and its number of classes (0: no labels)."""

    height: int
    width: int
    channels: int
    classes: int


GREY_28 = ImageShape(28, 28, 1, 10)
COLOUR_64 = ImageShape(64, 64, 3, 0)


class Model(Entry):
    """One system: how it is trained by default, what data it takes, and where it comes from."""

    recipe: GanRecipe | VaeRecipe
    source: str
    data_range: DataRange
    labels: Literal["required", "optional", "unused"] = "unused"
    side_multiple: int = 1  # image sides must be a multiple of it
    home: ImageShape = GREY_28  # the images it was made for

    @property
    def method(self) -> Literal["gan", "vae"]:
        """Which training method it belongs to."""
        return "gan" if isinstance(self.recipe, GanRecipe) else "vae"

    @property
    def roles(self) -> tuple[str, str]:
        """The functions of its file, each of which builds a network."""
        return ("generator", "discriminator") if self.method == "gan" else ("encoder", "decoder")

    def classes(self, recipe: Recipe, available: int) -> int:
        """How many classes its networks know, of those that the data have: none where labels are not used."""
        return available if self.labels != "unused" and recipe.labels else 0


MODELS: dict[str, Model] = {
    "cgan": Model(
        recipe=GanRecipe(
            kimg=400,
            batch=64,
            latent=64,
            width=32,
            generator_lr=2e-3,
            discriminator_lr=2e-3,
            beta2=0.99,
            ema_half_life_kimg=10.0,
            lr_decay="linear",
            lr_hold=0.5,
        ),
        source="the project's own conditional convolutional GAN",
        data_range="symmetric",
        labels="optional",
        side_multiple=4,
    ),
    "cvae": Model(
        recipe=VaeRecipe(
            kimg=240,
            batch=64,
            latent=32,
            width=32,
            lr=1.5e-3,
            beta=0.5,
            beta_warmup_kimg=50,
            sharpness=1.25,
            ema_half_life_kimg=10.0,
            lr_decay="linear",
        ),
        source="the project's own conditional convolutional VAE",
        data_range="unit",
        labels="optional",
        side_multiple=4,
    ),
    "dense-vae": Model(
        recipe=VaeRecipe(
            kimg=30000,
            batch=200,
            latent=50,
            width=200,
            lr=2e-3,
            lr_decay="linear",
            epsilon=1e-4,
            ema_half_life_kimg=500.0,
            dynamic_binarisation=True,
            prior_components=0,
        ),
        source="Burda et al., 2016: the VAE of dense layers whose likelihood is published",
        data_range="unit",
    ),
    "vanilla": Model(
        recipe=GanRecipe(
            kimg=6000, batch=100, latent=100, width=256, generator_lr=2e-4, discriminator_lr=2e-4, beta1=0.9
        ),
        source="document 002: a vanilla GAN of dense layers on digits",
        data_range="symmetric",
    ),
    "dense": Model(
        recipe=GanRecipe(
            kimg=3000,
            batch=64,
            latent=100,
            width=256,
            updates="separate",
            generator_lr=2e-4,
            discriminator_lr=2e-4,
            epsilon=1e-7,
        ),
        source="document 003: a first GAN, dense layers against convolutions",
        data_range="symmetric",
        side_multiple=4,
    ),
    "refine": Model(
        recipe=GanRecipe(
            kimg=2500,  # 50,000 steps
            batch=50,
            latent=100,
            width=32,
            real_label=0.9,
            updates="gated",
            generator_lr=1e-4,
            discriminator_lr=1e-4,
            beta1=0.9,
        ),
        source="document 000: a generator that refines a large image",
        data_range="unit",
        side_multiple=4,
    ),
    "dcgan": Model(
        recipe=GanRecipe(
            kimg=1000,
            batch=64,
            latent=100,
            width=64,
            updates="simultaneous",
            generator_lr=2e-4,
            discriminator_lr=2e-4,
        ),
        source="document 001: transposed convolutions, colour images of 64 by 64",
        data_range="symmetric",
        side_multiple=8,
        home=COLOUR_64,
    ),
    "fashion": Model(
        recipe=GanRecipe(
            kimg=2995.2,  # 50 epochs of 117 batches
            batch=512,
            latent=64,
            width=32,
            updates="simultaneous",
            generator_lr=1e-3,
            discriminator_lr=5e-3,
            discriminator_optimizer="rmsprop",
            epsilon=1e-7,
        ),
        source="document 004, question 1: a convolutional GAN on clothes",
        data_range="unit",
        side_multiple=4,
    ),
    "cvae-tutorial": Model(
        recipe=VaeRecipe(
            kimg=600,
            batch=32,
            latent=2,
            width=32,
            labels=False,
            lr=1e-4,
            epsilon=1e-7,
            binarise=True,
            divergence="sampled",
            prior_components=0,
        ),
        source="document 004, question 2: a convolutional VAE with a latent plane",
        data_range="unit",
        labels="optional",
        side_multiple=4,
    ),
    "pokemon-dense": Model(
        recipe=VaeRecipe(kimg=30, batch=32, latent=32, width=64, lr=1e-3, epsilon=1e-7, prior_components=0),
        source="document 004, last question: a dense VAE on Pokémon",
        data_range="unit",
        home=COLOUR_64,
    ),
    "pokemon-conv": Model(
        recipe=VaeRecipe(kimg=30, batch=32, latent=32, width=32, lr=1e-3, epsilon=1e-7, prior_components=0),
        source="document 004, last question: a convolutional VAE on Pokémon",
        data_range="unit",
        side_multiple=8,
        home=COLOUR_64,
    ),
    "pokemon-gan": Model(
        recipe=GanRecipe(
            kimg=60, batch=32, latent=100, width=128, generator_lr=2e-4, discriminator_lr=2e-4, epsilon=1e-7
        ),
        source="document 004, last question: the notebook's GAN on Pokémon",
        data_range="unit",
        side_multiple=4,
        home=COLOUR_64,
    ),
}


@dataclass(frozen=True)
class ModelCode:
    """A model by the code that it is made of.

    Attributes:
        name: what runs call it.
        entry: its row in the table, or the `MODEL` of its file.
        file: that builds its networks.
        module: that this file is to Python; None: it lies in a workspace, and is run from there.
        requirement: the distribution that it comes with, as pip takes it, if it is an installed one of the user's own.
    """

    name: str
    entry: Model
    file: Path
    module: str | None
    requirement: str = ""

    @property
    def versions(self) -> dict[str, str]:
        """Which distribution of the user's own it comes with, by name."""
        name, _, version = self.requirement.partition("==")
        return {name: version} if version else {}


def built_in(name: str) -> ModelCode:
    """A model of `MODELS`."""
    file = name.replace("-", "_")
    return ModelCode(name, MODELS[name], Path(__file__).parent / f"{file}.py", f"atelier.models.{file}")


def build_networks(model: str | ModelCode, recipe: Recipe, shape: ImageShape) -> dict[str, nn.Module]:
    """Build the networks of a model by the roles of its method: generator and discriminator, or encoder and decoder.

    The initial weights come from torch's global generator: seed it first. A name is that of a built-in model.
    """
    module = model_module(model)
    if not isinstance(recipe, GanRecipe):
        return {"encoder": module.encoder(recipe, shape), "decoder": module.decoder(recipe, shape)}
    from atelier.models.layers import Packed, spectral_norm

    generator: nn.Module = module.generator(recipe, shape)
    discriminator: nn.Module = module.discriminator(recipe, replace(shape, channels=shape.channels * recipe.pack))
    if recipe.spectral_norm:
        spectral_norm(discriminator)
    if recipe.pack > 1:
        discriminator = Packed(discriminator, recipe.pack)
    return {"generator": generator, "discriminator": discriminator}


def build_sampling_network(model: str | ModelCode, recipe: Recipe, shape: ImageShape) -> nn.Module:
    """Build the network that turns (noise, labels) into images once training is over, with no weights loaded."""
    if isinstance(recipe, GanRecipe):
        generator: nn.Module = model_module(model).generator(recipe, shape)
        return generator
    from atelier.models.prior import Decoding

    assert isinstance(recipe, VaeRecipe)
    decoder, prior = model_module(model).decoder(recipe, shape), build_prior(recipe, shape.classes)
    return Decoding(decoder, prior, build_likelihood(recipe), recipe.sharpness)


def build_prior(recipe: Recipe, classes: int) -> ClassPrior:
    """Build the prior of a VAE: N(0, I) until it is fitted."""
    from atelier.models.prior import ClassPrior

    assert isinstance(recipe, VaeRecipe)
    return ClassPrior(classes, recipe.latent, max(recipe.prior_components, 1))


def build_likelihood(recipe: Recipe) -> Likelihood:
    """Build the likelihood of a VAE."""
    from atelier.models.likelihood import LIKELIHOODS

    assert isinstance(recipe, VaeRecipe)
    return LIKELIHOODS[recipe.likelihood]()


def count_parameters(model: str | ModelCode) -> dict[str, int]:
    """Trainable parameters of each network of a model, at its default sizes on the images it was made for."""
    entry = (model if isinstance(model, ModelCode) else built_in(model)).entry
    home = entry.home
    shape = ImageShape(home.height, home.width, home.channels, entry.classes(entry.recipe, home.classes))
    return {
        role: sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        for role, network in build_networks(model, entry.recipe, shape).items()
    }


def model_module(model: str | ModelCode) -> ModuleType:
    """Import the file of a model.

    Raises:
        AtelierError: if there is none, it cannot be imported, or it lacks one of its two functions.
    """
    code = model if isinstance(model, ModelCode) else built_in(model)
    try:
        module = load_module(code.file, code.module)
    except (Exception, SystemExit) as error:  # whatever the code of a model of one's own may raise
        if isinstance(error, ModuleNotFoundError) and error.name == code.module:
            raise AtelierError(f"{code.file}: missing, and MODELS has an entry '{code.name}'") from None
        raise not_imported(code.file, error) from None
    for role in code.entry.roles:
        if not hasattr(module, role):
            raise AtelierError(f"{code.file}: has no function '{role}'; add it")
    return module

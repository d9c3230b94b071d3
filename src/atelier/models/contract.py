"""What the networks of a model must give, looked at before a training starts: most for a model of one's own."""

from __future__ import annotations

import traceback

import torch
from torch import nn

from atelier.errors import AtelierError, is_out_of_memory
from atelier.models import ImageShape, build_networks, model_module
from atelier.models.recipe import GanRecipe, Recipe


def build_checked_networks(name: str, recipe: Recipe, shape: ImageShape) -> dict[str, nn.Module]:
    """Build the networks of a model, and pass a small batch of zeros through each as it is, drawing nothing.

    Raises:
        AtelierError: if a network fails or gives something of another shape; the line names the model's file.
    """
    pack = recipe.pack if isinstance(recipe, GanRecipe) else 1
    count = 2 * pack
    batch = f"{count} images of {shape.height}×{shape.width}×{shape.channels}"
    try:
        networks = build_networks(name, recipe, shape)
        outputs = {role: _pass_zeros(role, network, count, recipe, shape) for role, network in networks.items()}
    except (RuntimeError, TypeError, ValueError, NameError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise AtelierError(
            f"model '{name}': {str(error).splitlines()[0]}, for {batch}; change {_place(name, error)}"
        ) from None
    image = (count, shape.channels, shape.height, shape.width)
    expected: dict[str, list[tuple[int, ...]]] = {
        "generator": [image],
        "discriminator": [(count // pack,)],
        "encoder": [(count, recipe.latent), (count, recipe.latent)],
        "decoder": [image],
    }
    for role, found in outputs.items():
        if found != expected[role]:
            raise AtelierError(
                f"model '{name}': its {role} gives {_words(found)} for {batch}, it must be "
                f"{_words(expected[role])}; change {_place(name, None)}"
            )
    return networks


@torch.no_grad()
def _pass_zeros(role: str, network: nn.Module, count: int, recipe: Recipe, shape: ImageShape) -> list[tuple[int, ...]]:
    """The shapes of what a network gives; its state and the random numbers stay as they were."""
    inputs = (
        torch.zeros(count, recipe.latent)
        if role in ("generator", "decoder")
        else torch.zeros(count, shape.channels, shape.height, shape.width)
    )
    labels = torch.zeros(count, dtype=torch.long) if shape.classes else None
    with torch.random.fork_rng(devices=[]):
        output = network.eval()(inputs, labels)
    network.train()
    return [tuple(part.shape) for part in (output if isinstance(output, tuple) else (output,))]


def _place(name: str, error: Exception | None) -> str:
    """The file of a model, and the last of its lines on the way to an error."""
    file = str(model_module(name).__file__)
    frames = traceback.extract_tb(error.__traceback__) if error else []
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{file}:{lines[-1]}" if lines else file


def _words(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes)

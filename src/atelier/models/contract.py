"""What the networks of a model must give, looked at before a training starts: most for a model of one's own."""

from __future__ import annotations

import copy

import safetensors.torch
import torch
from torch import Tensor, nn

from atelier.errors import AtelierError, is_out_of_memory
from atelier.models import ImageShape, ModelCode, build_networks, built_in
from atelier.models.loading import place
from atelier.models.recipe import GanRecipe, Recipe

FAR_OUT = 1000.0  # noise so large that a generator without a bound shows it, trained or not


def build_checked_networks(model: str | ModelCode, recipe: Recipe, shape: ImageShape) -> dict[str, nn.Module]:
    """Build the networks of a model, and pass a small batch through each as it is, drawing nothing.

    Raises:
        AtelierError: if a network fails, gives something of another shape or images outside the model's data range, or
            cannot be written to a file; the line names the model's file.
    """
    code = model if isinstance(model, ModelCode) else built_in(model)
    name = code.name
    pack = recipe.pack if isinstance(recipe, GanRecipe) else 1
    count = 2 * pack
    batch = f"{count} images of {shape.height}×{shape.width}×{shape.channels}"
    try:
        networks = build_networks(code, recipe, shape)
        outputs = {role: _pass(role, network, count, recipe, shape) for role, network in networks.items()}
        shapes = {role: [tuple(part.shape) for part in output] for role, output in outputs.items()}
    except Exception as error:  # whatever the code of a model of one's own may raise
        if isinstance(error, AtelierError) or is_out_of_memory(error):
            raise
        raise AtelierError(
            f"model '{name}': {_first_line(error)}, for {batch}; change {place(code.file, error)}"
        ) from None
    image = (count, shape.channels, shape.height, shape.width)
    expected: dict[str, list[tuple[int, ...]]] = {
        "generator": [image],
        "discriminator": [(count // pack,)],
        "encoder": [(count, recipe.latent), (count, recipe.latent)],
        "decoder": [image],
    }
    for role, found in shapes.items():
        if found != expected[role]:
            raise AtelierError(
                f"model '{name}': its {role} gives {_words(found)} for {batch}, it must be "
                f"{_words(expected[role])}; change {code.file}"
            )
    _check_range(code, outputs)
    for role, network in networks.items():
        _check_state(code, role, network)
    return networks


def _check_state(code: ModelCode, role: str, network: nn.Module) -> None:
    """A training writes its networks as tensors, each with memory of its own, and takes averages of copies of them."""
    state = {key: x.contiguous() if isinstance(x, Tensor) else x for key, x in network.state_dict().items()}
    try:
        copy.deepcopy(network).load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    except Exception as error:  # whatever torch, safetensors or code of one's own may raise
        words = " ".join(str(error).split()).split(". ")[0][:320]
        raise AtelierError(
            f"model '{code.name}': its {role} cannot be written and read again: {words}; change {code.file}"
        ) from None


@torch.no_grad()
def _pass(role: str, network: nn.Module, count: int, recipe: Recipe, shape: ImageShape) -> tuple[Tensor, ...]:
    """What a network gives for far-out noise or black images; its state and the random numbers stay as they were."""
    inputs = (
        torch.linspace(-FAR_OUT, FAR_OUT, count * recipe.latent).view(count, recipe.latent)
        if role in ("generator", "decoder")
        else torch.zeros(count, shape.channels, shape.height, shape.width)
    )
    labels = torch.zeros(count, dtype=torch.long) if shape.classes else None
    with torch.random.fork_rng(devices=[]):
        output = network.eval()(inputs, labels)
    network.train()
    return output if isinstance(output, tuple) else (output,)


def _check_range(code: ModelCode, outputs: dict[str, tuple[Tensor, ...]]) -> None:
    name, data_range = code.name, code.entry.data_range
    if "decoder" in outputs:
        if data_range != "unit":
            raise AtelierError(
                f"model '{name}': data_range is '{data_range}', and a likelihood is of pixels in [0, 1]; set 'unit' in "
                "its entry"
            )
        return  # whatever number a decoder gives is a logit
    low, high = (float(bound) for bound in outputs["generator"][0].aminmax())
    found = f"model '{name}': its generator gives values from {low:.3g} to {high:.3g}, and data_range '{data_range}' is"
    lowest, end = (-1, "tanh") if data_range == "symmetric" else (0, "a sigmoid")
    if not (low >= lowest and high <= 1):
        raise AtelierError(f"{found} [{lowest}, 1]; end it in {end}: change {code.file}")
    if low >= 0 > lowest:
        raise AtelierError(f"{found} [-1, 1]; end it in tanh, or set 'unit' in its entry: change {code.file}")


def _first_line(error: Exception) -> str:
    words = str(error).splitlines()[0] if str(error) else "fails"
    return words if isinstance(error, RuntimeError | NameError) else f"{type(error).__name__}: {words}"


def _words(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes)

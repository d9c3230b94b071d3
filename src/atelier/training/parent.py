"""Where a training starts that goes on from the weights of another: fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from atelier.errors import InputError
from atelier.tensors import load_tensors

SHOWN = 3  # tensors that do not fit, in a message


def start_from(networks: Mapping[str, nn.Module], folder: Path, say: Callable[[str], None]) -> None:
    """Give new networks the weights of a trained model, before their averages and optimisers are made.

    The generator or decoder gets those that the model draws with, which are averaged; the encoder those that lie beside
    them. A discriminator is not kept: it starts anew, and so does what a VAE fits at its end.

    Args:
        networks: by their roles.
        folder: of the trained model.
        say: tells what starts anew.

    Raises:
        InputError: if the model is of another kind, or a tensor of another shape, which is named.
        AtelierError: if a file is damaged.
    """
    sampler = load_tensors(folder / "sampler.safetensors")
    decoder = {name.removeprefix("decoder."): it for name, it in sampler.items() if name.startswith("decoder.")}
    for role, network in networks.items():
        beside = folder / f"{role}.safetensors"
        if role == "decoder" or (role == "generator" and not decoder):
            weights = sampler if role == "generator" else decoder
        elif role == "generator" or not beside.is_file():
            weights = {}
        else:
            weights = load_tensors(beside)
        if not weights and role in ("generator", "decoder"):
            raise InputError(f"init: the model that it names has no {role}; name one of the same kind")
        if weights:
            _load(role, network, weights)
        else:
            say(f"the {role} starts anew: the model that init names has none")


def _load(role: str, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [
        f"{role}.{name} is {theirs.get(name, 'not')} there, {own.get(name, 'not')} here"
        for name in own | theirs
        if own.get(name) != theirs.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(
            f"init: its weights do not fit this run: {'; '.join(wrong[:SHOWN])}{more}; set width, latent, labels and "
            "data set as they were there"
        )
    network.load_state_dict(dict(weights))

"""Models with the weights that they start with, for what does not depend on how good they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from atelier.config.records import ModelConfig
from atelier.files import digest
from atelier.models import MODELS, ImageShape, build_networks, build_sampling_network
from atelier.sampler import Sampler
from atelier.tensors import save_tensors


def untrained(model: str, shape: ImageShape, **settings: Any) -> Sampler:
    """A sampler; a VAE's prior is a mixture already."""
    torch.manual_seed(0)
    recipe = MODELS[model].recipe.model_copy(update=settings)
    network = build_sampling_network(model, recipe, shape).eval()
    for name, buffer in network.named_buffers():
        if name == "prior.cumulative":
            buffer.copy_(torch.linspace(0.1, 1.0, buffer.shape[1]).expand_as(buffer))
        elif name == "prior.mean":
            buffer.normal_()
    config = ModelConfig(
        run="run",
        dataset="mnist",
        model=model,
        recipe=recipe,
        noise=recipe.noise,
        data_range=MODELS[model].data_range,
        height=shape.height,
        width=shape.width,
        channels=shape.channels,
        class_names=list("0123456789"[: shape.classes]),
        train_images_sha256="0" * 64,
        train_labels_sha256=None,
        versions={"torch": "2.0"},
        device="cpu",
        world_size=1,
        precision="fp32",
    )
    return Sampler(network.to(memory_format=torch.channels_last), config)


def write_untrained(folder: Path, model: str, shape: ImageShape, **settings: Any) -> Path:
    """The folder of a model, as a training leaves it, but for its pictures."""
    folder.mkdir(parents=True)
    sampler = untrained(model, shape, **settings)
    for parameter in sampler.network.parameters():
        if parameter.numel() > parameter.shape[0] > 1:  # or all of its images would be grey
            parameter.data *= 2 / (parameter.std() * math.sqrt(parameter[0].numel()))
    networks = {"sampler": sampler.network}
    if MODELS[model].method == "vae":
        networks["encoder"] = build_networks(model, sampler.config.recipe, shape)["encoder"]
    for name, network in networks.items():
        save_tensors(folder / f"{name}.safetensors", network.state_dict())
    sha256 = {name: digest(folder / f"{name}.safetensors") for name in networks}
    sampler.config.model_copy(update={"run": folder.name, "weights_sha256": sha256}).write(folder / "config.json")
    return folder

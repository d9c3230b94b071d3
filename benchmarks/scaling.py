"""What ranks tell each other in a step, and what that leaves of n devices: `python benchmarks/scaling.py`.

Prints the tables of docs/scaling.md. The bytes are counted in a step of one rank; `tests/test_scaling.py` holds them to
what 2, 4 and 8 ranks send. The times come from a model (Thakur, Rabenseifner and Gropp, "Optimization of collective
communication operations in MPICH", 2005, section 4.5) and the measured loops of docs/training.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from atelier.models import MODELS, ImageShape, build_networks
from atelier.ranks import Ranks
from atelier.training import build_method

STATISTICS_FORWARD = 2 * 8  # bytes per channel: the sums of a layer's values and of their squares, in float64
STATISTICS_BACKWARD = 2 * 4  # bytes per channel: the sums of its two gradients, in float32
FLAGS = 2 * 4  # bytes per step: whether any rank is to stop, and whether the writer is to save


@dataclass(frozen=True)
class Network:
    """What connects the ranks."""

    name: str
    latency: float  # seconds per message, its launch included
    bandwidth: float  # bytes per second that a rank sends while it receives as many


# NVLink 4: 450 GB/s a direction (NVIDIA's data sheet of the H100); the latencies are round figures: put in your own
NETWORKS = (
    Network("NVLink", 10e-6, 450e9),
    Network("100 Gb Ethernet", 20e-6, 12.5e9),
    Network("10 Gb Ethernet", 50e-6, 1.25e9),
)
RANKS = (2, 4, 8, 16, 32, 64)
# model, image, images per rank and step, images per second of one H100 in the loop of docs/training.md, which starts
# kernel by kernel, as several ranks do
MEASURED = (
    ("cgan", ImageShape(28, 28, 1, 10), 64, 3609),
    ("cgan", ImageShape(28, 28, 1, 10), 1024, 49781),
    ("cgan", ImageShape(64, 64, 3, 0), 64, 2776),
    ("dcgan", ImageShape(64, 64, 3, 0), 64, 3131),
    ("cvae", ImageShape(28, 28, 1, 10), 64, 5454),
)
SHAPES = {"dcgan": ImageShape(64, 64, 3, 0), "pokemon-conv": ImageShape(64, 64, 3, 0)}
DIGITS = ImageShape(28, 28, 1, 10)
# steps that its gates would leave out are counted; the losses that they look at, 4 bytes each, are not
CHANGES: dict[str, dict[str, Any]] = {"refine": {"updates": "separate"}}


@dataclass
class Exchanges:
    """What a step has all ranks add up: the bytes of each sum, by what they are."""

    of: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def all(self) -> list[int]:
        """Every sum's bytes, those of the flags among them."""
        return [size for sizes in self.of.values() for size in sizes]


def shape_of(model: str) -> ImageShape:
    """Images that a model of docs/models.md is made for."""
    shape = SHAPES.get(model, DIGITS)
    return shape if MODELS[model].labels != "unused" else replace(shape, classes=0)


def of_a_step(model: str, shape: ImageShape, **changes: Any) -> Exchanges:
    """Count what a step of a model would exchange, in a step of one rank with a penalty and the generator's turn."""
    entry = MODELS[model]
    fixed = {"batch": 8, "precision": "fp32"} | CHANGES.get(model, {})
    recipe = entry.recipe.model_copy(update=fixed | changes)
    networks = build_networks(model, recipe, shape)
    method = build_method(entry, recipe, networks, shape.classes, Ranks())
    images = torch.rand(recipe.batch, shape.channels, shape.height, shape.width)
    labels = torch.arange(recipe.batch) % shape.classes if shape.classes else None
    method.set_progress(0.0)
    found = Exchanges()
    with _counted(networks, method.optimizers(), found):
        method.step(images, labels)
    found.of["flags"].append(FLAGS)
    return found


@contextmanager
def _counted(networks: dict[str, nn.Module], optimizers: list[Optimizer], found: Exchanges) -> Iterator[None]:
    def normalised(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if layer.training:
            channels = inputs[0].shape[1]
            found.of["statistics"].append(channels * STATISTICS_FORWARD)
            if output.requires_grad:
                output.register_hook(lambda _: found.of["statistics"].append(channels * STATISTICS_BACKWARD))

    def stepped(optimizer: Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        found.of["gradients"].append(sum(weight.numel() * weight.element_size() for weight in weights))

    norms = {module for network in networks.values() for module in network.modules() if isinstance(module, _BatchNorm)}
    handles: list[Any] = [norm.register_forward_hook(normalised) for norm in norms]
    handles += [optimizer.register_step_pre_hook(stepped) for optimizer in optimizers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seconds(size: int, ranks: int, network: Network) -> float:
    """How long `ranks` ranks take to add up `size` bytes: the better of recursive doubling and Rabenseifner's way."""
    rounds = math.ceil(math.log2(ranks))
    doubling = rounds * (network.latency + size / network.bandwidth)
    halving = 2 * rounds * network.latency + 2 * (ranks - 1) / ranks * size / network.bandwidth
    return min(doubling, halving)


def efficiency(found: Exchanges, step: float, ranks: int, network: Network) -> float:
    """The share of n devices' speed that is left, each with as many images as the one whose step takes `step` s."""
    # the flags travel beside the step
    waits = sum(seconds(size, ranks, network) for what, sizes in found.of.items() if what != "flags" for size in sizes)
    return step / (step + waits)


def tables() -> str:
    """The tables of docs/scaling.md."""
    lines = ["| model | image | gradients, MB | sums of statistics | their KB |", "|---|---|---|---|---|"]
    for model in MODELS:
        shape = shape_of(model)
        found = of_a_step(model, shape).of
        image = f"{shape.height}×{shape.width}×{shape.channels}"
        gradients, statistics = (found.get(what, []) for what in ("gradients", "statistics"))
        lines.append(
            f"| `{model}` | {image} | {' + '.join(f'{size / 1e6:.2f}' for size in gradients)} "
            f"| {len(statistics)} | {sum(statistics) / 1e3:.1f} |"
        )
    lines += [
        "",
        f"| model, images per rank | network | {' | '.join(map(str, RANKS))} | seconds of a device per kimg |",
    ]
    lines.append("|---|---|" + "---|" * (len(RANKS) + 1))
    for model, shape, batch, rate in MEASURED:
        found_of, side = of_a_step(model, shape), f"{shape.height}×{shape.width}"
        for network in NETWORKS:
            shares = [efficiency(found_of, batch / rate, ranks, network) for ranks in RANKS]
            cost = f"{1000 / rate:.3f}, {1000 / rate / shares[-1]:.3f} on {RANKS[-1]}"
            left = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| `{model}` {side}, {batch} | {network.name} | {left} | {cost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())

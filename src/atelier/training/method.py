"""What a training method is to the loop: a step on a batch, a state, and the network it yields. It knows no files."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from atelier.models.recipe import Recipe

Batches = Iterable[tuple[Tensor, Tensor | None]]
Number = float | Tensor


class Method(Protocol):
    """A way of training, such as `Gan` or `Vae`. Images come as float (n, c, h, w) in the model's own range."""

    def step(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Learn from one batch; returns figures as scalar tensors, not read back to the host."""

    def schedule(self, kimg: float) -> tuple[float, ...]:
        """The numbers in force after `kimg` that change as training goes on: learning rates, weights of losses."""

    def set_progress(self, kimg: float, numbers: Sequence[Number] | None = None) -> None:
        """Tell how far training is.

        Args:
            kimg: thousands of images seen.
            numbers: scalars in device memory that hold what `schedule` says, whenever a step runs; None: plain floats.
        """

    def kind(self) -> Hashable:
        """What the next step computes: steps of one kind differ in numbers only."""

    def reads_back(self) -> str:
        """Why its steps wait for figures on the host, or keep state there; empty if they do not."""

    def generators(self) -> list[torch.Generator]:
        """What it draws from, beside torch's own."""

    def optimizers(self) -> list[Optimizer]:
        """What it steps with, so that the loop can have gradients averaged over ranks."""

    def sampling_network(self) -> nn.Module:
        """The network that turns (noise, labels) into images, as of now."""

    def finish(self, batches: Callable[[], Batches]) -> None:
        """Do what remains once training has ended; `batches` goes over the training images once."""

    def companions(self) -> dict[str, nn.Module]:
        """Networks worth keeping beside the sampling network, by name."""

    def state_dict(self) -> dict[str, Any]:
        """All it needs to go on bit for bit: tensors, numbers, strings, lists and dicts of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state saved by `state_dict`."""


class Autocast:
    """Precision of the forward passes: `with autocast(): ...`."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.device_type = device.type
        self.enabled = precision == "bf16" or (precision == "auto" and has_bf16(device))

    def __call__(self) -> contextlib.AbstractContextManager[Any]:
        """A fresh context."""
        return torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.enabled)


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Average(nn.Module):
    """Exponential moving average of a network's parameters and buffers; with half-life 0, the network as it is.

    torch's `AveragedModel` does the same, but reads a counter back from the device at every step.
    """

    def __init__(self, network: nn.Module, half_life_kimg: float, batch: int) -> None:
        super().__init__()
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.weight_of_new = 1 - 0.5 ** (batch / 1000 / half_life_kimg) if half_life_kimg else 1.0
        self._network = [network]  # in a list, so that it does not become a part of this module
        self._floating, self._counts = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
        for pair in zip(_tensors(self.average), _tensors(network), strict=True):
            (self._floating if pair[0].is_floating_point() else self._counts).append(pair)

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in, once a step."""
        if self.weight_of_new < 1:
            averages, values = zip(*self._floating, strict=True)
            torch._foreach_lerp_(averages, values, self.weight_of_new)

    @property
    def network(self) -> nn.Module:
        """The averaged network, in evaluation mode."""
        with torch.no_grad():
            for average, value in self._counts if self.weight_of_new < 1 else self._floating + self._counts:
                average.copy_(value)
        return self.average


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, without their history."""
    return (tensor.detach() for tensor in itertools.chain(network.parameters(), network.buffers()))


def learning_rate_factor(recipe: Recipe, kimg: float) -> float:
    """Share of the learning rate in force after `kimg`, by `lr_decay` and `lr_hold`."""
    progress = (kimg / recipe.kimg - recipe.lr_hold) / (1 - recipe.lr_hold)
    progress = min(max(progress, 0.0), 1.0)
    if recipe.lr_decay == "linear":
        return 1.0 - progress
    if recipe.lr_decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0

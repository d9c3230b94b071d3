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
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from atelier.models.recipe import Recipe

Batches = Iterable[tuple[Tensor, Tensor | None]]
Number = float | Tensor
POWER_ITERATIONS = 15  # as many as torch begins with


class Method(Protocol):
    """A way of training, such as `Gan` or `Vae`. Images come as float (n, c, h, w) in the model's own range.

    Attributes:
        ema: the weights that are the result.
    """

    ema: Average

    def step(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Learn from one batch; returns figures as scalar tensors, not read back to the host."""

    def schedule(self, kimg: float) -> tuple[float, ...]:
        """The numbers in force after `kimg` that change as training goes on: learning rates, weights."""

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
    """Exponential moving average of a network; with half-life 0, the network as it is.

    Parameters are averaged, and the running statistics of normalisations, which belong to them. Other buffers are
    copied, as by StyleGAN and EDM: an average of vectors of unit length has another length. Those of spectral
    normalisation are then turned to the averaged weights, by further power iterations.
    """

    def __init__(self, network: nn.Module, half_life_kimg: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.is_kept = half_life_kimg > 0
        self.weight_of_new: Number = 1.0  # in the next update; see `weight_of_new`
        self._averaged, self._copied = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
        for mine, its in zip(self.average.modules(), network.modules(), strict=True):
            for (name, tensor), (_, value) in zip(_tensors_of(mine), _tensors_of(its), strict=True):
                is_averaged = isinstance(tensor, nn.Parameter) or (isinstance(mine, _NormBase) and "running" in name)
                pairs = self._averaged if self.is_kept and is_averaged else self._copied
                pairs.append((tensor.detach(), value.detach()))

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in, once a step."""
        if not self.is_kept:
            return
        averages, values = map(list, zip(*self._averaged, strict=True))
        if isinstance(self.weight_of_new, Tensor):  # on the device; `_foreach_lerp_` would read it back
            changes = torch._foreach_sub(values, averages)
            torch._foreach_mul_(changes, self.weight_of_new)
            torch._foreach_add_(averages, changes)
        else:
            torch._foreach_lerp_(averages, values, self.weight_of_new)

    def snapshot(self) -> dict[str, Tensor]:
        """The averaged weights as they are now, on the host."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.network.state_dict().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Be a snapshot from now on, whatever the network does."""
        self.average.load_state_dict(snapshot)
        self._copied, self.is_kept = [], False

    @property
    def network(self) -> nn.Module:
        """The averaged network, in evaluation mode."""
        with torch.no_grad():
            for average, value in self._copied:
                average.copy_(value)
            if self.is_kept:
                for module in self.average.modules():
                    if isinstance(module, ParametrizationList):
                        _renew_norms(module)
        return self.average


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers."""
    return itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))


def _renew_norms(parametrizations: ParametrizationList) -> None:
    for parametrization in parametrizations:
        if isinstance(parametrization, _SpectralNorm):
            parametrization.train()  # each pass iterates once
            for _ in range(POWER_ITERATIONS):
                parametrization(parametrizations.original)
            parametrization.eval()


def weight_of_new(recipe: Recipe, kimg: float) -> float:
    """The share that the weights after the step from `kimg` on have in their average.

    The half-life is no longer than `ema_rampup` of what was seen (Karras et al., "Analyzing and improving the image
    quality of StyleGAN", 2020, whose code does so; EDM, 2022): a short training is not judged by its beginning.
    """
    half_life = recipe.ema_half_life_kimg
    if recipe.ema_rampup:
        half_life = min(half_life, kimg * recipe.ema_rampup)
    return 1 - 0.5 ** (recipe.batch / 1000 / half_life) if half_life else 1.0


def learning_rate_factor(recipe: Recipe, kimg: float) -> float:
    """Share of the learning rate in force after `kimg`, by `lr_decay` and `lr_hold`."""
    progress = (kimg / recipe.kimg - recipe.lr_hold) / (1 - recipe.lr_hold)
    progress = min(max(progress, 0.0), 1.0)
    if recipe.lr_decay == "linear":
        return 1.0 - progress
    if recipe.lr_decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0

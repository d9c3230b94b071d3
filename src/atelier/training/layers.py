"""Networks whose layers see another part of the batch than they are given.

Over ranks, batch normalisation and dropout act on the whole global batch; and a batch that is too large for the device
is taken through each network in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from atelier.ranks import Ranks


def synchronise(
    networks: dict[str, nn.Module], ranks: Ranks, norm_statistics: Literal["global", "local"] = "global"
) -> dict[str, nn.Module]:
    """Make freshly built networks equal on all ranks and act on the global batch; parameters and names stay.

    With `local` statistics a batch normalisation acts on the rank's own images, and nothing is exchanged for it; the
    running mean and variance that are published are the writer's.
    """
    if ranks.world_size == 1:
        return networks
    for network in networks.values():
        ranks.copy_from_writer(network.state_dict().values())
    return {role: _synchronise_layers(network, ranks, norm_statistics) for role, network in networks.items()}


def _synchronise_layers(network: nn.Module, ranks: Ranks, norm_statistics: str) -> nn.Module:
    norms = norm_statistics == "global"
    if norms and ranks.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        # the new class differs in how it computes only, so an instance may change class and keep all it holds
        if norms and isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = SynchronisedBatchNorm
        elif type(module) is nn.Dropout:
            module.__class__ = GlobalDropout
        if isinstance(module, SynchronisedBatchNorm | GlobalDropout):
            vars(module)["ranks"] = ranks
    return network


class GlobalDropout(nn.Dropout):
    """Dropout whose mask is drawn for the global batch: the same numbers as on one rank, from the same generator."""

    ranks: Ranks

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop values of (n, ...); this rank's rows of the mask are used."""
        if not self.training or self.p == 0:
            return inputs
        count = len(inputs)
        everyone = inputs.new_ones(count * self.ranks.world_size, *inputs.shape[1:])
        mask = F.dropout(everyone, self.p)
        return inputs * mask[self.ranks.rank * count : (self.ranks.rank + 1) * count]


class SynchronisedBatchNorm(_BatchNorm):
    """Batch normalisation over the global batch, for processors: torch's own `SyncBatchNorm` is for CUDA alone."""

    ranks: Ranks

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (n, c, ...) will do."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (n, c, ...); every rank must have the same n."""
        if not self.training:
            return super().forward(inputs)
        output, mean, variance, count = _Normalise.apply(inputs, self.weight, self.bias, self.eps, self.ranks)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        normalised: Tensor = output
        return normalised


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with one exchange forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        count = inputs.numel() // inputs.shape[1]
        variance, mean = torch.var_mean(inputs.float(), [0, *range(2, inputs.dim())], correction=0)
        # sums in float64: the difference of two large squares would lose the variance in float32
        mean, variance = mean.double(), variance.double()
        sums = ranks.sum(torch.stack([mean, variance + mean.square()]) * count)
        count *= ranks.world_size
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_(min=0)
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(inputs, weight, mean, torch.rsqrt(variance + eps))
        ctx.count, ctx.eps, ctx.ranks = count, eps, ranks
        output = F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Ioffe and Szegedy (2015), section 3, with the two sums over the batch taken over all ranks."""
        inputs, weight, mean, inverse_deviation = ctx.saved_tensors
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            inputs,
            None if weight is None else weight,
            None,
            None,
            mean,
            inverse_deviation,
            True,
            ctx.eps,
            [False, True, True],
        )  # this rank's sums of gradient · normalised, and of gradient
        sums = ctx.ranks.sum(torch.stack([of_weight, of_bias]))
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        slope = -scale * inverse_deviation * sums[0] / ctx.count
        offset = -scale * sums[1] / ctx.count - slope * mean
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        of_inputs = gradient * scale.view(shape) + inputs * slope.view(shape) + offset.view(shape)
        return (
            of_inputs.to(inputs.dtype),
            None if weight is None else of_weight,
            of_bias if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def in_microbatches(network: nn.Module, size: int) -> nn.Module:
    """Let a network hold the activations of `size` images at most; 0 leaves it as it is.

    A method sees its whole batch and steps as often as ever, so that kimg, loss and schedule mean the same on fewer
    devices. What is given up is time: activations are not kept but computed again (Chen et al., "Training deep nets
    with sublinear memory cost", 2016). Batch normalisation sees a piece at a time, as in any accumulation of gradients.
    """
    if size:
        # a subclass made for it, as torch's `fully_shard` does: names, weights and copies stay what they are
        kind = type(network)
        network.__class__ = type(f"Microbatched{kind.__name__}", (_InMicrobatches, kind), {"microbatch": size})
    return network


class _InMicrobatches(nn.Module):
    microbatch: int

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:
        """What the network itself returns: a tensor of n rows, or several."""
        if len(inputs) <= self.microbatch or not self.training:
            return super().forward(inputs, labels)
        count = -(-len(inputs) // self.microbatch)  # as even as can be: no piece of a single image
        pieces = inputs.tensor_split(count)
        labels_of = [None] * count if labels is None else labels.tensor_split(count)
        forward = super().forward
        outputs = [
            checkpoint(forward, *piece, use_reentrant=False, context_fn=self._first_and_second_pass)
            for piece in zip(pieces, labels_of, strict=True)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def _first_and_second_pass(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self._without_running_figures()

    @contextmanager
    def _without_running_figures(self) -> Iterator[None]:
        """The second pass computes the same again: the running mean and variance must not move twice."""
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

"""Layers that must see the whole global batch when it is spread over ranks: batch normalisation and dropout."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from atelier.ranks import Ranks, lost_if_it_fails


def synchronise(networks: dict[str, nn.Module], ranks: Ranks) -> dict[str, nn.Module]:
    """Make freshly built networks equal on all ranks and act on the global batch; parameters and names stay."""
    if ranks.world_size == 1:
        return networks
    for network in networks.values():
        ranks.copy_from_writer(network.state_dict().values())
    return {role: _synchronise_layers(network, ranks.device) for role, network in networks.items()}


def _synchronise_layers(network: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        # the new class differs in how it computes only, so an instance may change class and keep all it holds
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = SynchronisedBatchNorm
        elif type(module) is nn.Dropout:
            module.__class__ = GlobalDropout
    return network


class GlobalDropout(nn.Dropout):
    """Dropout whose mask is drawn for the global batch: the same numbers as on one rank, from the same generator."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop values of (n, ...); this rank's rows of the mask are used."""
        if not self.training or self.p == 0:
            return inputs
        count = len(inputs)
        everyone = inputs.new_ones(count * dist.get_world_size(), *inputs.shape[1:])
        mask = F.dropout(everyone, self.p)
        return inputs * mask[dist.get_rank() * count : (dist.get_rank() + 1) * count]


class SynchronisedBatchNorm(_BatchNorm):
    """Batch normalisation over the global batch, for processors: torch's own `SyncBatchNorm` is for CUDA alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (n, c, ...) will do."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (n, c, ...); every rank must have the same n."""
        if not self.training:
            return super().forward(inputs)
        output, mean, variance, count = _Normalise.apply(inputs, self.weight, self.bias, self.eps)
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
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        count = inputs.numel() // inputs.shape[1]
        variance, mean = torch.var_mean(inputs.float(), [0, *range(2, inputs.dim())], correction=0)
        # sums in float64: the difference of two large squares would lose the variance in float32
        mean, variance = mean.double(), variance.double()
        sums = torch.stack([mean, variance + mean.square()]) * count
        with lost_if_it_fails():
            dist.all_reduce(sums)
        count *= dist.get_world_size()
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_(min=0)
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(inputs, weight, mean, torch.rsqrt(variance + eps))
        ctx.count, ctx.eps = count, eps
        output = F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
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
        sums = torch.stack([of_weight, of_bias])
        with lost_if_it_fails():
            dist.all_reduce(sums)
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
        )

"""A batch that is too large for the device, taken through each network in pieces.

A method sees its whole batch and steps as often as ever, so that kimg, loss and schedule mean the same on fewer
devices. What is given up is time: activations are not kept but computed again (Chen et al., "Training deep nets with
sublinear memory cost", 2016). Batch normalisation sees a piece at a time, as in any accumulation of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def in_microbatches(network: nn.Module, size: int) -> nn.Module:
    """Let a network hold the activations of `size` images at most; 0 leaves it as it is."""
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

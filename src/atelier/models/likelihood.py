"""What a VAE's decoder says of an image: the distribution of its pixels, given the decoder's output."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bernoulli(nn.Module):
    """Each pixel is 1 with probability sigmoid(output). Grey values are taken as such probabilities themselves."""

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """Nats of each image (n,), for outputs and images (n, c, h, w)."""
        if not torch.is_grad_enabled():  # torch's log1p takes four times as long as the rest: of thousands of latents
            logarithms = output.abs().neg_().exp_().add_(1).log_()
            return (images * output - output.clamp(min=0) - logarithms).flatten(1).sum(1)
        return -F.binary_cross_entropy_with_logits(output, images, reduction="none").flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The expected images (n, c, h, w), in [0, 1]."""
        return torch.sigmoid(output)


class Gaussian(nn.Module):
    """Each pixel is normal around sigmoid(output), with one variance for all that is learned with the rest.

    Rybkin et al., "Simple and effective VAE training with calibrated decoders" (2021), section 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(-2.0))

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """Nats of each image (n,), of its density at the pixels' values in [0, 1]."""
        squares = (images - self.mean(output)).square().flatten(1).sum(1)
        pixels = images[0].numel()
        return -0.5 * (squares * torch.exp(-self.log_variance) + pixels * (self.log_variance + math.log(2 * math.pi)))

    def mean(self, output: Tensor) -> Tensor:
        """The expected images (n, c, h, w), in [0, 1]."""
        return torch.sigmoid(output)


LIKELIHOODS: dict[str, type[Bernoulli] | type[Gaussian]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}

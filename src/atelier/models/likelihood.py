"""What a VAE's decoder says of an image: the distribution of its pixels, given the decoder's output.

`is_of_levels`: whether it is a probability of the 256 levels that pixels have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bernoulli(nn.Module):
    """Each pixel is 1 with probability sigmoid(output). Grey values are taken as such probabilities themselves."""

    is_of_levels = False

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

    is_of_levels = False

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


class Logistic(nn.Module):
    """Each pixel is one of 256 levels: a logistic distribution around sigmoid(output), cut between them.

    Kingma et al., "Improving variational inference with inverse autoregressive flow" (2016). One scale for all is
    learned with the rest, and the first and last level have the tails, as in Salimans et al., "PixelCNN++" (2017), so
    that the levels' probabilities sum to 1.
    """

    is_of_levels = True

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-2.0))

    def log_prob(self, output: Tensor, images: Tensor) -> Tensor:
        """Nats of each image (n,), of the probability of its levels, which are multiples of 1/255."""
        half, precision = 0.5 / 255, torch.exp(-self.log_scale)
        away = images - self.mean(output)
        below = F.logsigmoid((away + half) * precision)  # of the level's upper end
        above = F.logsigmoid((half - away) * precision)
        # F(b) − F(a) = F(b) · (1 − F(a)) · (1 − exp(a − b)), in which nothing cancels
        between = torch.log(-torch.expm1(-2 * half * precision))
        first, last = images < half, images > 1 - half
        nats = below.masked_fill(last, 0) + above.masked_fill(first, 0) + between * ~(first | last)
        return nats.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The images (n, c, h, w) that the levels lie around, in [0, 1]."""
        return torch.sigmoid(output)


Likelihood = Bernoulli | Gaussian | Logistic
LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian, "logistic": Logistic}

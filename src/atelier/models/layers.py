"""Layers that the documents have and torch has not, and what several systems share.

The documents of TensorFlow keep maps as (row, column, channel). Maps are reshaped and flattened here in that order, so
that a weight means what it means there; it also keeps them in torch's channels_last order, which is the fast one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unconditional(nn.Sequential):
    """Layers in a row that make no use of labels."""

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Apply the layers to (n, ...)."""
        for layer in self:
            inputs = layer(inputs)
        return inputs


class UnconditionalEncoder(nn.Sequential):
    """Layers in a row that make no use of labels; the last gives the mean and, behind it, the log-variance."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, c, h, w) → mean and log-variance, each (n, latent)."""
        for layer in self:
            images = layer(images)
        mean, log_variance = images.chunk(2, dim=1)
        return mean, log_variance


class Reshape(nn.Module):
    """(n, side·side·channels) → maps (n, channels, side, side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """Reshape."""
        return features.view(features.shape[0], self.side, self.side, -1).permute(0, 3, 1, 2)


class Flatten(nn.Module):
    """Maps (n, channels, side, side) → (n, side·side·channels)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Flatten."""
        return maps.permute(0, 2, 3, 1).flatten(1)


class ConvSame(nn.Conv2d):
    """A convolution of kernel 3 and stride 2 with TensorFlow's padding SAME, on maps of even side: right and below."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, in_channels, 2·side, 2·side) → (n, out_channels, side, side)."""
        return super().forward(F.pad(maps, (0, 1, 0, 1)))


def upward(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution of kernel 3 that doubles the side: stride 2, SAME.

    TensorFlow trims the last row and column, torch the first: the same but for a mirroring of what is learned.
    """
    return nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, output_padding=1)


def truncated_normal(noise: Tensor, bound: float = 2.0) -> Tensor:
    """Standard normal noise → a normal distribution cut off at ±bound, as `tf.truncated_normal` draws it.

    A map of each number, so that sampling needs no other noise than any model's: Φ⁻¹ of Φ(noise) squeezed between
    Φ(−bound) and Φ(bound).
    """
    share = math.erf(bound / math.sqrt(2))
    truncated: Tensor = torch.special.ndtri(0.5 + (torch.special.ndtr(noise.float()) - 0.5) * share)
    return truncated


def glorot_uniform(network: nn.Module) -> nn.Module:
    """Initialise as Keras does: weights Glorot-uniform (Glorot and Bengio, 2010), biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


class Packed(nn.Module):
    """A discriminator that judges `size` images together, stacked as channels (PacGAN, Lin et al., 2018, section 3).

    Args:
        discriminator: of images with `size` times as many channels, without labels.
    """

    def __init__(self, discriminator: nn.Module, size: int) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.size = size

    def forward(self, images: Tensor, labels: None) -> Tensor:
        """(n, c, h, w) → logits (n / size,)."""
        count, _, height, width = images.shape
        logits: Tensor = self.discriminator(images.reshape(count // self.size, -1, height, width), labels)
        return logits


def spectral_norm(network: nn.Module) -> None:
    """Divide each weight by its largest singular value, one power iteration a pass (Miyato et al., 2018)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.utils.parametrizations.spectral_norm(module)

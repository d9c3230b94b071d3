"""What is done to images on their way to the discriminator: mirroring, and DiffAugment for small data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.models import DataRange
from atelier.ranks import Noise


def mirror(images: Tensor, noise: Noise) -> Tensor:
    """Mirror each image (n, c, h, w) left to right with probability one half."""
    turned = noise.uniform(len(images), 1, 1, 1) < 0.5
    return torch.where(turned, images.flip(3), images)


Augmentation = Callable[[Tensor, Noise], Tensor]  # images (n, c, h, w) in [-1, 1] → the same changed


def augment(images: Tensor, changes: Sequence[Augmentation], noise: Noise, data_range: DataRange) -> Tensor:
    """Change images (n, c, h, w) at random, each by itself, so that gradients flow through the changes.

    Real images and fakes alike: the generator is not taught the changes. Zhao et al., "Differentiable augmentation for
    data-efficient GAN training" (2020), section 3.2 and appendix; its sizes are of images in [-1, 1], where zero is
    grey, so those in [0, 1] are changed there and put back.
    """
    if not changes:
        return images
    if data_range == "unit":
        images = 2 * images - 1
    for change in changes:
        images = change(images, noise)
    return (images + 1) / 2 if data_range == "unit" else images


def _colour(images: Tensor, noise: Noise) -> Tensor:
    """Brightness by ±0.5 (of a range of 2), saturation by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = noise.uniform(len(images), 3, 1, 1, 1).unbind(1)
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, 2 * saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def _translation(images: Tensor, noise: Noise) -> Tensor:
    """Shift by up to an eighth of the side each way; zeros come in."""
    count, _, height, width = images.shape
    reach_y, reach_x = round(height / 8), round(width / 8)
    shifts = noise.uniform(count, 2, 1)
    # place of each pixel in the padded image, where a border of one zero catches all that lies outside
    y = (torch.arange(height, device=images.device) + _integers(shifts[:, 0], -reach_y, reach_y) + 1).clamp(
        0, height + 1
    )
    x = (torch.arange(width, device=images.device) + _integers(shifts[:, 1], -reach_x, reach_x) + 1).clamp(0, width + 1)
    rows = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, noise: Noise) -> Tensor:
    """Set a square of half the side to zero, its middle anywhere."""
    count, _, height, width = images.shape
    middles = noise.uniform(count, 2, 1)
    y = torch.arange(height, device=images.device) - _integers(middles[:, 0], 0, height)
    x = torch.arange(width, device=images.device) - _integers(middles[:, 1], 0, width)
    inside_y, inside_x = (y >= -height // 4) & (y < height // 4), (x >= -width // 4) & (x < width // 4)
    return images * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])


def _integers(uniform: Tensor, low: int, high: int) -> Tensor:
    """Integers from low to high, both included, of numbers in [0, 1)."""
    return low + (uniform * (high - low + 1)).long()


AUGMENTATIONS: dict[str, Augmentation] = {
    "colour": _colour,
    "translation": _translation,
    "cutout": _cutout,
}

"""Ways between latents, and how far an image changes along them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.evaluation.extractors import Extractor
from atelier.models.recipe import VaeRecipe
from atelier.pictures import Images, Labels
from atelier.sampler import CHUNK, Sampler, draw_noise, grey_values

STEP = 1e-4  # of a way whose length is 1
DISCARDED = 0.01  # share of the shortest distances, and of the longest


def between(sampler: Sampler, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Noise (n, noise) at t, from 0 to 1, of the way from `start` to `end`: a great circle for a GAN, a line for a VAE.

    Normal latents of many dimensions lie near a sphere, and a GAN knows nothing inside it (White, "Sampling generative
    networks", 2016). A VAE keeps the component of its prior, which its last number chooses.
    """
    if isinstance(sampler.config.recipe, VaeRecipe):
        way = (1 - t) * start + t * end
        way[:, -1] = start[:, -1]
        return way
    angle = torch.acos(F.cosine_similarity(start, end, dim=1).clamp(-0.999, 0.999))[:, None]
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def ways(sampler: Sampler, seed: int, count: int, steps: int, labels: Tensor | None) -> Images:
    """Images (count × steps, h, w, c) along ways from one latent of a seed to another, each of a class (count,)."""
    start, end = draw_noise(2 * count, sampler.noise, seed).chunk(2)
    noise = torch.stack([between(sampler, start, end, t) for t in torch.linspace(0, 1, steps)], dim=1)
    return sampler.render(noise.flatten(0, 1), None if labels is None else labels.repeat_interleave(steps))


@torch.no_grad()
def path_length(sampler: Sampler, extractor: Extractor, labels: Labels | None, count: int, seed: int) -> float:
    """Perceptual path length (Karras et al., 2019), full paths in the space of the noise, within a class.

    The mean over `count` places, without the hundredth of them where an image changes least and that where it changes
    most, of d(x, x') / `STEP`²: x and x' are the images at t and t + `STEP`, before they are rounded, d the square of
    the distance between their features, each of unit length. The published metric takes d from LPIPS.

    Args:
        sampler: of the model.
        extractor: whose features are compared.
        labels: (count,), of the images; None without classes.
        count: places.
        seed: of the ways and the places on them.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = list[Tensor]()
    # another rounding than float32's, as convolutions on some cards have it, is larger than such a step
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for first in range(0, count, CHUNK):
            size = min(CHUNK, count - first)
            start, end = torch.randn(2, size, sampler.noise, generator=generator)
            t = torch.rand(size, 1, generator=generator)
            noise = torch.cat([between(sampler, start, end, t), between(sampler, start, end, t + STEP)])
            asked = None if labels is None else torch.from_numpy(labels[first : first + size]).repeat(2)
            images = sampler.network(noise.to(sampler.device), None if asked is None else asked.to(sampler.device))
            pixels = grey_values(images, sampler.config.data_range).clamp(0, 255)
            here, there = F.normalize(extractor.of_pixels(pixels).double(), dim=1).chunk(2)
            squares.append((there - here).square().sum(dim=1).cpu() / STEP**2)
    distances = torch.cat(squares)
    low = distances.quantile(DISCARDED, interpolation="lower")
    high = distances.quantile(1 - DISCARDED, interpolation="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())

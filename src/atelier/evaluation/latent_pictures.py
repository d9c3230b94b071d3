"""Pictures of what a model has learned: between latents, over a plane of them, reconstructions, nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atelier.evaluation.judge import Labels
from atelier.evaluation.likelihood import TrainedVae
from atelier.evaluation.memorisation import Nearest
from atelier.pictures import Images, tile
from atelier.sampler import Sampler, draw_noise

COLUMNS = 10
ROWS = 8
PLANE = 20


def interpolation(sampler: Sampler, seed: int) -> Images:
    """A row from one latent to another: on the great circle for a GAN, on the line for a VAE.

    Normal latents of many dimensions lie near a sphere, and a GAN knows nothing inside it (White, "Sampling generative
    networks", 2016). A conditional model keeps a row's class, a VAE the component of its prior.
    """
    start, end = draw_noise(2 * ROWS, sampler.noise, seed).chunk(2)
    if is_vae := sampler.config.entry.method == "vae":
        end[:, -1] = start[:, -1]
    steps = torch.linspace(0, 1, COLUMNS)
    noise = torch.stack([_line(start, end, t) if is_vae else _great_circle(start, end, t) for t in steps], dim=1)
    classes = len(sampler.class_names)
    labels = (torch.arange(ROWS) % classes).repeat_interleave(COLUMNS) if classes else None
    return tile(sampler.render(noise.flatten(0, 1), labels), columns=COLUMNS)


def _line(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return (1 - t) * a + t * b


def _great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-0.999, 0.999)
    angle = torch.acos(cosine)[:, None]
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def latent_plane(vae: TrainedVae, images: Images, labels: Labels | None) -> Images:
    """The two latent dimensions that tell these images apart best, from the 5th to the 95th percentile of N(0, 1).

    The others are 0; a conditional model is asked for its first class.
    """
    means = vae.encode(images, labels)
    used = means.var(dim=0).topk(min(2, means.shape[1])).indices.cpu()
    values = torch.special.ndtri(torch.linspace(0.05, 0.95, PLANE))
    latents = torch.zeros(PLANE * PLANE, means.shape[1])
    latents[:, used] = torch.cartesian_prod(values, values)[:, : len(used)]
    return tile(vae.decode(latents, None if labels is None else np.zeros(len(latents), np.int64)), columns=PLANE, gap=0)


def reconstructions(vae: TrainedVae, images: Images, labels: Labels | None) -> Images:
    """Test images, each row of them above what the VAE makes of it."""
    count = ROWS // 2 * COLUMNS
    originals, asked = images[:count].copy(), None if labels is None else labels[:count]
    decoded = vae.decode(vae.encode(originals, asked), asked)
    rows = [
        part
        for start in range(0, len(originals), COLUMNS)
        for part in (originals[start : start + COLUMNS], decoded[start : start + COLUMNS])
    ]
    return tile(np.concatenate(rows), columns=COLUMNS)


def neighbours(fakes: Images, train: Images, nearest: Nearest) -> Images:
    """The fakes that are closest to a training image, each before its nearest training images."""
    closest = np.argsort(nearest.distances[:, 0], kind="stable")[:ROWS]
    rows = [np.concatenate([fakes[index : index + 1], train[nearest.indices[index]]]) for index in closest]
    return tile(np.concatenate(rows), columns=1 + nearest.indices.shape[1])

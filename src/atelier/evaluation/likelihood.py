"""How well a VAE explains test images: the evidence lower bound, importance-weighted likelihood, and reconstructions.

In nats per image, under the prior N(0, I) that it was trained with; a prior that was fitted to the latents afterwards
draws better samples, but is no part of the bound. Pixels are what training took them for: with `bernoulli`, grey values
are probabilities, whose likelihoods compare with those of other models on grey values, and not with published ones on
images of 0 and 1: with `dynamic_binarisation` those are drawn, each time anew (Burda et al., 2016).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atelier.errors import AtelierError
from atelier.evaluation.extractors import as_input
from atelier.files import digest
from atelier.models import build_networks
from atelier.models.recipe import VaeRecipe
from atelier.own_code import require_code
from atelier.pictures import Images, Labels
from atelier.progress import watch
from atelier.ranks import Ranks
from atelier.sampler import Sampler, to_uint8
from atelier.tensors import load_weights

BATCH = 100
VALUES = 1 << 18  # that a decoder gives at once, of all its images and latents: 1 MB, which fits into a cache


class TrainedVae:
    """Both halves of a trained VAE."""

    def __init__(self, sampler: Sampler, encoder: nn.Module) -> None:
        self.device = sampler.device
        self.encoder = encoder.to(self.device).eval()
        self.decoder: nn.Module = sampler.network.get_submodule("decoder")
        self.likelihood: Any = sampler.network.get_submodule("likelihood")
        recipe = sampler.config.recipe
        assert isinstance(recipe, VaeRecipe)
        self.recipe = recipe

    @classmethod
    def load(cls, sampler: Sampler, folder: Path, root: Path) -> TrainedVae | None:
        """Load the encoder beside a workspace's sampler, after checking its digest; None if the model is no VAE."""
        config = sampler.config
        if not isinstance(config.recipe, VaeRecipe):
            return None
        weights = folder / "encoder.safetensors"
        if not weights.is_file() or digest(weights) != config.weights_sha256.get("encoder"):
            raise AtelierError(f"{weights}: missing or altered; run 'atelier train {config.run}' again")
        code = require_code(config, folder, root)
        encoder = build_networks(code, config.recipe, config.shape)["encoder"]
        load_weights(weights, encoder, f"the encoder of model '{config.model}'")
        return cls(sampler, encoder)

    def inputs(self, images: Images, labels: Labels | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (n, h, w, c) and labels (n,) as the networks take them; dynamic binarisation draws from it."""
        pixels = as_input(torch.from_numpy(images).to(self.device))
        if self.recipe.dynamic_binarisation:
            pixels = (pixels > torch.rand(pixels.shape, generator=generator, device=self.device)).float()
        elif self.recipe.binarise:
            pixels = (pixels > 0.5).float()
        return pixels, None if labels is None else torch.from_numpy(labels).to(self.device)

    @torch.no_grad()
    def encode(self, images: Images, labels: Labels | None) -> Tensor:
        """Posterior means (n, latent)."""
        generator = torch.Generator(self.device).manual_seed(0)
        mean: Tensor = self.encoder(*self.inputs(images, labels, generator))[0]
        return mean

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Labels | None) -> Images:
        """Images uint8 (n, h, w, c) of latents (n, latent)."""
        on_device = None if labels is None else torch.from_numpy(labels).to(self.device)
        return to_uint8(self.likelihood.mean(self.decoder(latents.to(self.device), on_device)), "unit")


@torch.no_grad()
def likelihood_metrics(
    vae: TrainedVae, images: Images, labels: Labels | None, samples: int, seed: int, ranks: Ranks
) -> dict[str, float]:
    """Judge a VAE by test images (n, h, w, c) with labels (n,); all ranks get the same, bit for bit, however many.

    Args:
        vae: the trained VAE.
        images: uint8 (n, h, w, c).
        labels: (n,), or None for an unconditional model.
        samples: latents per image for the importance weights (Burda et al., 2016, equation 8); memory does not grow
            with them.
        seed: of the latents, and of the images where training draws them anew each time.
        ranks: that share the work: they take batches of images in turn.

    Returns:
        elbo: evidence lower bound, one latent per image.
        nll: upper bound of the negative log-likelihood, tighter the more samples; with one it is −elbo on average.
        bits_per_dimension: nll for each value of an image, in bits; of likelihoods of the 256 levels only.
        reconstruction_mse: mean square of what a grey value in [0, 1] is off by, decoding the posterior's mean.
    """
    generator = torch.Generator(vae.device).manual_seed(seed)
    mine = list[Tensor]()
    starts = range(0, len(images), BATCH)
    for number, start in enumerate(watch(starts, len(starts), "likelihood", "batch")):
        here = slice(start, start + BATCH)
        pixels, classes = vae.inputs(images[here].copy(), None if labels is None else labels[here], generator)
        noises = _noises(samples, (len(pixels), vae.recipe.latent), pixels[0].numel(), generator)
        if number % ranks.world_size == ranks.rank:
            mine.append(_sums(vae, pixels, classes, noises, samples))
        else:
            deque(noises, maxlen=0)  # drawn by every rank, as if it were the only one
    of_ranks = ranks.gather(mine)
    total = sum(of_ranks[number % ranks.world_size][number // ranks.world_size] for number in range(len(starts)))
    assert isinstance(total, Tensor)
    elbo, nll, mse = (total / len(images)).tolist()
    found = {"elbo": elbo, "nll": nll, "reconstruction_mse": mse}
    if vae.likelihood.is_of_levels:
        found["bits_per_dimension"] = nll / images[0].size / math.log(2)
    return found


def _noises(samples: int, shape: tuple[int, int], pixels: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal noise (k, n, latent) of `samples` latents an image, as many at once as may be decoded at once."""
    at_once = max(VALUES // (shape[0] * pixels), 1)
    for start in range(0, samples, at_once):
        yield torch.randn(min(at_once, samples - start), *shape, generator=generator, device=generator.device)


def _sums(vae: TrainedVae, pixels: Tensor, classes: Tensor | None, noises: Iterator[Tensor], samples: int) -> Tensor:
    """elbo, nll and reconstruction_mse, each summed over a batch of images (n, c, h, w); float64 (3,)."""
    mean, log_variance = (part.float() for part in vae.encoder(pixels, classes))
    elbo, evidence = None, torch.tensor(-math.inf, dtype=torch.float64, device=pixels.device)
    for noise in noises:
        weights = _log_weights(vae, pixels, classes, mean, log_variance, noise).double()
        elbo = weights[0].sum() if elbo is None else elbo
        evidence = torch.logaddexp(evidence, weights.logsumexp(dim=0))
    assert elbo is not None
    nll = (math.log(samples) - evidence).sum()
    reconstructed = vae.likelihood.mean(vae.decoder(mean, classes))
    mse = (reconstructed - pixels).square().mean(dim=(1, 2, 3)).double().sum()
    return torch.stack([elbo, nll, mse]).cpu()


def _log_weights(
    vae: TrainedVae, pixels: Tensor, classes: Tensor | None, mean: Tensor, log_variance: Tensor, noise: Tensor
) -> Tensor:
    """log p(x, z) − log q(z | x) of the latents (k, n) that noise (k, n, latent) stands for."""
    count = len(noise)
    latents = mean + torch.exp(0.5 * log_variance) * noise
    log_prior = -0.5 * latents.square().sum(dim=2)  # the constants of both normals cancel
    log_posterior = -0.5 * (noise.square() + log_variance).sum(dim=2)
    output = vae.decoder(latents.flatten(0, 1), None if classes is None else classes.repeat(count)).float()
    log_likelihood: Tensor = vae.likelihood.log_prob(output, pixels.repeat(count, 1, 1, 1))
    return log_likelihood.view(count, -1) + log_prior - log_posterior

"""How well a VAE explains test images: the evidence lower bound, importance-weighted likelihood, and reconstructions.

In nats per image, under the prior N(0, I) that it was trained with; a prior that was fitted to the latents afterwards
draws better samples, but is no part of the bound. Pixels are what training took them for: with `bernoulli`, grey values
are probabilities, whose likelihoods compare with those of other models on grey values, and not with published ones on
images of 0 and 1: with `dynamic_binarisation` those are drawn, each time anew (Burda et al., 2016).
"""

from __future__ import annotations

import math
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
from atelier.sampler import Sampler, to_uint8
from atelier.tensors import load_weights

BATCH = 100


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
    vae: TrainedVae, images: Images, labels: Labels | None, samples: int, seed: int
) -> dict[str, float]:
    """Judge a VAE by test images (n, h, w, c) with labels (n,).

    Args:
        vae: the trained VAE.
        images: uint8 (n, h, w, c).
        labels: (n,), or None for an unconditional model.
        samples: latents per image for the importance weights (Burda et al., 2016, equation 8).
        seed: of the latents, and of the images where training draws them anew each time.

    Returns:
        elbo: evidence lower bound, one latent per image.
        nll: upper bound of the negative log-likelihood, tighter the more samples; with one it is −elbo on average.
        reconstruction_mse: mean square of what a grey value in [0, 1] is off by, decoding the posterior's mean.
    """
    generator = torch.Generator(vae.device).manual_seed(seed)
    elbo, nll, squares = 0.0, 0.0, 0.0
    for start in range(0, len(images), BATCH):
        here = slice(start, start + BATCH)
        pixels, classes = vae.inputs(images[here].copy(), None if labels is None else labels[here], generator)
        mean, log_variance = (part.float() for part in vae.encoder(pixels, classes))
        weights = torch.stack(
            [_log_weights(vae, pixels, classes, mean, log_variance, generator) for _ in range(samples)]
        ).double()
        elbo += float(weights[0].sum())
        nll -= float((weights.logsumexp(dim=0) - math.log(samples)).sum())
        reconstructed = vae.likelihood.mean(vae.decoder(mean, classes))
        squares += float((reconstructed - pixels).square().mean(dim=(1, 2, 3)).double().sum())
    return {"elbo": elbo / len(images), "nll": nll / len(images), "reconstruction_mse": squares / len(images)}


def _log_weights(
    vae: TrainedVae,
    pixels: Tensor,
    classes: Tensor | None,
    mean: Tensor,
    log_variance: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """log p(x, z) − log q(z | x) of one latent per image (n,)."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    latents = mean + torch.exp(0.5 * log_variance) * noise
    log_prior = -0.5 * latents.square().sum(dim=1)  # the constants of both normals cancel
    log_posterior = -0.5 * (noise.square() + log_variance).sum(dim=1)
    log_likelihood: Tensor = vae.likelihood.log_prob(vae.decoder(latents, classes).float(), pixels)
    return log_likelihood + log_prior - log_posterior

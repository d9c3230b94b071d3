"""What a VAE draws its latents from, and the network that turns noise into images once it is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atelier.models.likelihood import Likelihood

RIDGE = 1e-3  # variance, added in each direction
TINY = 1e-15  # of a point: a component that none belongs to keeps weight 0 and no mean that is not a number


class ClassPrior(nn.Module):
    """A Gaussian mixture a class over the latent space; N(0, I) until it is fitted. Without classes: a single mixture.

    Fitting a density to the latents after training follows Ghosh et al., "From variational to deterministic
    autoencoders" (2020), section 4.
    """

    def __init__(self, classes: int, latent: int, components: int) -> None:
        super().__init__()
        groups = max(classes, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.cumulative: Tensor
        self.register_buffer("mean", torch.zeros(groups, components, latent))
        self.register_buffer("scale", torch.eye(latent).repeat(groups, components, 1, 1))
        self.register_buffer("cumulative", torch.ones(groups, components))

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (n, latent) of standard normal noise (n, latent + 1), whose last column chooses the component."""
        group = torch.zeros(noise.shape[0], dtype=torch.long, device=noise.device) if labels is None else labels
        noise, choice = noise[:, :-1], noise[:, -1:]
        uniform = 0.5 * (1 + torch.erf(choice / math.sqrt(2)))
        component = (self.cumulative[group] < uniform).sum(1).clamp(max=self.cumulative.shape[1] - 1)
        return self.mean[group, component] + torch.einsum("nij,nj->ni", self.scale[group, component], noise)

    @torch.no_grad()
    def fit(self, latents: Tensor, labels: Tensor | None, seed: int) -> None:
        """Fit each class's mixture to posterior means (n, latent) with labels (n,), by expectation-maximisation."""
        generator = torch.Generator().manual_seed(seed)
        for index in range(len(self.mean)):
            members = latents.double() if labels is None else latents[labels == index].double()
            # a component needs about as many points as it has dimensions; a class without pictures keeps N(0, I)
            components = min(self.mean.shape[1], len(members) // (2 * members.shape[1]))
            if components == 0:
                continue
            start = members[torch.randperm(len(members), generator=generator)[:components].to(members.device)]
            weights, means, covariances = fit_mixture(members, start)
            self.mean[index, :components] = means
            self.scale[index, :components] = torch.linalg.cholesky(covariances)
            self.cumulative[index, :components] = weights.cumsum(0)


def fit_mixture(points: Tensor, start: Tensor, rounds: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of Gaussians by expectation-maximisation (Bishop, "Pattern recognition", 2006, section 9.2.2).

    It is computed where the points are: scikit-learn's took half a minute beside a GPU that trains for two seconds.

    Args:
        points: (n, d), float64.
        start: (k, d), the first means. The first Gaussians are round and narrow.
        rounds: of expectation and maximisation.

    Returns:
        Weights (k,), means (k, d) and covariances (k, d, d), with `RIDGE` on their diagonals.
    """
    components, latent = start.shape
    ridge = RIDGE * torch.eye(latent, dtype=points.dtype, device=points.device)
    weights = points.new_full((components,), 1 / components)
    means, covariances = start, ridge.repeat(components, 1, 1)
    for _ in range(rounds):
        scales = torch.linalg.cholesky(covariances)
        logarithms = weights.log() - scales.diagonal(dim1=1, dim2=2).log().sum(1)
        distances = [  # one component at a time: all at once would hold n × k × d numbers
            torch.linalg.solve_triangular(scale, (points - mean).T, upper=False).square().sum(0)
            for mean, scale in zip(means, scales, strict=True)
        ]
        shares = torch.softmax(logarithms - torch.stack(distances, 1) / 2, dim=1)  # (n, k)
        mass = shares.sum(0) + TINY
        weights, means = mass / mass.sum(), shares.T @ points / mass[:, None]
        covariances = torch.stack(
            [
                (share * (points - mean).T) @ (points - mean) / total + ridge
                for share, mean, total in zip(shares.T, means, mass, strict=True)
            ]
        )
    return weights, means, covariances


class Decoding(nn.Module):
    """Noise and labels → images in [0, 1]: the prior, the decoder, and the mean of the likelihood.

    A decoder gives the mean of all images that a latent may stand for, which is blurred: where they differ, logits are
    near 0. Multiplied by a `sharpness` above 1 they say what most of these images have.
    """

    def __init__(self, decoder: nn.Module, prior: ClassPrior, likelihood: Likelihood, sharpness: float = 1.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Images (n, c, h, w) of standard normal noise (n, latent + 1) and labels (n,)."""
        return self.decode(self.prior(noise, labels), labels)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Images (n, c, h, w), as they are drawn, of latents (n, latent) and labels (n,)."""
        return self.likelihood.mean(self.sharpness * self.decoder(latents, labels))

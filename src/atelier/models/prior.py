"""What a VAE draws its latents from, and the network that turns noise into images once it is trained."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from atelier.models.likelihood import Bernoulli, Gaussian


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
        group = torch.zeros(len(noise), dtype=torch.long, device=noise.device) if labels is None else labels
        noise, choice = noise[:, :-1], noise[:, -1:]
        uniform = 0.5 * (1 + torch.erf(choice / math.sqrt(2)))
        component = (
            torch.searchsorted(self.cumulative[group], uniform).squeeze(1).clamp(max=self.cumulative.shape[1] - 1)
        )
        return self.mean[group, component] + torch.einsum("nij,nj->ni", self.scale[group, component], noise)

    @torch.no_grad()
    def fit(self, latents: Tensor, labels: Tensor | None, seed: int) -> None:
        """Fit each class's mixture to posterior means (n, latent) with labels (n,), by expectation-maximisation."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        points = latents.double().cpu().numpy()
        groups = torch.zeros(len(latents), dtype=torch.long) if labels is None else labels.cpu()
        for index in range(len(self.mean)):
            members = points[(groups == index).numpy()]
            # a component needs about as many points as it has dimensions; a class without pictures keeps N(0, I)
            components = min(self.mean.shape[1], len(members) // (2 * points.shape[1]))
            if components == 0:
                continue
            mixture = GaussianMixture(
                components, reg_covar=1e-3, max_iter=20, tol=0, init_params="random_from_data", random_state=seed
            )
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # 20 rounds are what is wanted
                mixture.fit(members)
            self.mean[index, :components] = torch.from_numpy(mixture.means_)
            self.scale[index, :components] = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_))
            self.cumulative[index, :components] = torch.from_numpy(mixture.weights_).cumsum(0)


class Decoding(nn.Module):
    """Noise and labels → images in [0, 1]: the prior, the decoder, and the mean of the likelihood."""

    def __init__(self, decoder: nn.Module, prior: ClassPrior, likelihood: Bernoulli | Gaussian) -> None:
        super().__init__()
        self.decoder = decoder
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Images (n, c, h, w) of standard normal noise (n, latent + 1) and labels (n,)."""
        return self.likelihood.mean(self.decoder(self.prior(noise, labels), labels))

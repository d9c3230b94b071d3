"""Variational training (Kingma and Welling, 2014): maximise the evidence lower bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from atelier.models import build_likelihood, build_prior
from atelier.models.likelihood import Likelihood
from atelier.models.prior import Decoding
from atelier.models.recipe import Recipe, VaeRecipe
from atelier.ranks import Noise, Ranks
from atelier.training.augmentation import mirror
from atelier.training.method import Autocast, Average, Batches, Number, learning_rate_factor, weight_of_new


class Vae:
    """An encoder (images, labels) → mean, log-variance and a decoder (latents, labels) → what the likelihood takes."""

    def __init__(self, networks: dict[str, nn.Module], recipe: Recipe, classes: int, ranks: Ranks) -> None:
        assert isinstance(recipe, VaeRecipe)
        self.recipe = recipe
        device = ranks.device
        self.autocast = Autocast(recipe.precision, device)
        self.likelihood = build_likelihood(recipe)
        networks = networks | {"likelihood": self.likelihood}
        self.networks = nn.ModuleDict(networks).to(device).to(memory_format=torch.channels_last)
        self.ema = Average(self.networks, recipe.ema_half_life_kimg)
        self.prior = build_prior(recipe, classes).to(device)
        self.optimizer = torch.optim.Adam(
            self.networks.parameters(), recipe.lr, eps=recipe.epsilon, fused=True, capturable=device.type == "cuda"
        )
        self.noise = Noise(recipe.seed, ranks)
        self.beta: Number = recipe.beta

    def step(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """One step on the negative ELBO; figures are in nats an image."""
        if self.recipe.mirror:
            images = mirror(images, self.noise)
        images = self._binarised(images)
        noise = self.noise.normal(len(images), self.recipe.latent)
        with self.autocast():
            mean, log_variance = (part.float() for part in self.networks["encoder"](images, labels))
            latents = mean + torch.exp(0.5 * log_variance) * noise
            output = self.networks["decoder"](latents, labels).float()
        reconstruction = -self.likelihood.log_prob(output, images).mean()
        if self.recipe.divergence == "sampled":  # log q(z|x) - log p(z)
            divergence = 0.5 * (latents.square() - noise.square() - log_variance).sum() / len(images)
        else:
            divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / len(images)
        loss = reconstruction + self.beta * divergence
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.ema.update()
        return {
            "elbo": -(reconstruction + divergence).detach(),
            "reconstruction": reconstruction.detach(),
            "divergence": divergence.detach(),
        }

    def _binarised(self, images: Tensor) -> Tensor:
        if self.recipe.dynamic_binarisation:
            return (images > self.noise.uniform(len(images), *images.shape[1:])).float()
        return (images > 0.5).float() if self.recipe.binarise else images

    def schedule(self, kimg: float) -> tuple[float, float, float]:
        """The learning rate and the weights of the divergence and of the average in force after `kimg`."""
        warmup = self.recipe.beta_warmup_kimg
        beta = self.recipe.beta * (min(kimg / warmup, 1.0) if warmup else 1.0)
        return self.recipe.lr * learning_rate_factor(self.recipe, kimg), beta, weight_of_new(self.recipe, kimg)

    def set_progress(self, kimg: float, numbers: Sequence[Number] | None = None) -> None:
        """Set the learning rate and the weights."""
        self.optimizer.param_groups[0]["lr"], self.beta, self.ema.weight_of_new = numbers or self.schedule(kimg)

    def kind(self) -> Hashable:
        """All steps are alike."""
        return ()

    def reads_back(self) -> str:
        """Microbatches keep random states aside."""
        return "microbatch runs forward passes twice" if self.recipe.microbatch else ""

    def generators(self) -> list[torch.Generator]:
        """The one of the noise."""
        return [self.noise.generator]

    def optimizers(self) -> list[Optimizer]:
        """One for both networks."""
        return [self.optimizer]

    def sampling_network(self) -> nn.Module:
        """The averaged decoder behind the prior."""
        networks = self.ema.network
        likelihood = networks.get_submodule("likelihood")
        assert isinstance(likelihood, Likelihood)
        return Decoding(networks.get_submodule("decoder"), self.prior, likelihood, self.recipe.sharpness).eval()

    @torch.no_grad()
    def finish(self, batches: Callable[[], Batches]) -> None:
        """Fit the prior to the latents of the training images."""
        if not self.recipe.prior_components:
            return
        encoder = self.ema.network.get_submodule("encoder")
        means, all_labels = [], []
        for images, labels in batches():
            means.append(encoder(self._binarised(images), labels)[0])
            if labels is not None:
                all_labels.append(labels)
        self.prior.fit(torch.cat(means), torch.cat(all_labels) if all_labels else None, self.recipe.seed)

    def companions(self) -> dict[str, nn.Module]:
        """The encoder: likelihoods and reconstructions need it."""
        return {"encoder": self.ema.network.get_submodule("encoder")}

    def state_dict(self) -> dict[str, Any]:
        """Networks, average, optimiser and the state of the noise."""
        return {
            "networks": self.networks.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state saved by `state_dict`."""
        self.networks.load_state_dict(state["networks"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])

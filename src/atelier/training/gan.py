"""Adversarial training (Goodfellow et al., 2014): a step of the discriminator, then one of the generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from atelier.errors import InputError
from atelier.models import DataRange
from atelier.models.recipe import GanRecipe, Recipe
from atelier.ranks import Noise, Ranks
from atelier.training.augmentation import AUGMENTATIONS, augment, mirror
from atelier.training.losses import ADVERSARIAL_LOSSES, interpolated_penalty, zero_centred_penalty
from atelier.training.method import Autocast, Average, Batches, Number, learning_rate_factor, weight_of_new

if TYPE_CHECKING:
    from atelier.training.own import Own

# "gated": the loss above which each step is made, in their order, as in the code that `refine` was taken from
GATES = {"fake": 0.6, "generator": 0.5, "real": 0.45}


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Leave out the gradients of its weights."""
    network.requires_grad_(False)
    try:
        yield
    finally:  # also where a capture of the step fails
        network.requires_grad_(True)


class Gan:
    """A generator (noise, labels) → images against a discriminator (images, labels) → logits."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        recipe: Recipe,
        data_range: DataRange,
        ranks: Ranks,
        own: Own | None = None,
    ) -> None:
        assert isinstance(recipe, GanRecipe)
        self.recipe = recipe
        self.data_range = data_range
        self.ranks = ranks
        device = ranks.device
        self.autocast = Autocast(recipe.precision, device)
        self.generator = networks["generator"].to(device).to(memory_format=torch.channels_last)
        self.discriminator = networks["discriminator"].to(device).to(memory_format=torch.channels_last)
        self.ema = Average(self.generator, recipe.ema_half_life_kimg)
        betas, epsilon = (recipe.beta1, recipe.beta2), recipe.epsilon
        capturable = device.type == "cuda"  # its counter of steps on the device
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), recipe.generator_lr, betas, epsilon, fused=True, capturable=capturable
        )
        self.discriminator_optimizer: Optimizer
        if recipe.discriminator_optimizer == "adam":
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(),
                recipe.discriminator_lr,
                betas,
                epsilon,
                fused=True,
                capturable=capturable,
            )
        else:  # with TensorFlow's ρ: torch's own is 0.99
            self.discriminator_optimizer = torch.optim.RMSprop(
                self.discriminator.parameters(),
                recipe.discriminator_lr,
                alpha=0.9,
                eps=epsilon,
                foreach=True,
                capturable=capturable,
            )
        losses, augmentations = (own.losses, own.augmentations) if own else ({}, {})
        self.loss = losses.get(recipe.loss) or ADVERSARIAL_LOSSES[recipe.loss]
        self.changes = [augmentations.get(name) or AUGMENTATIONS[name] for name in recipe.augment]
        self.noise = Noise(recipe.seed, ranks)
        self.steps = 0
        if recipe.penalty != "none" and ranks.world_size > 1 and recipe.norm_statistics == "global":
            self._refuse_norms_over_ranks()
        if recipe.batch % (recipe.pack * ranks.world_size):
            raise InputError(
                f"pack {recipe.pack}: batch {recipe.batch} does not split over {ranks.world_size} ranks into "
                f"whole packs; set the run's batch to a multiple of {recipe.pack * ranks.world_size}"
            )

    def step(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """One step of each network, in the order that `updates` says; returns what is logged."""
        if self.recipe.mirror:
            images = mirror(images, self.noise)
        if self.recipe.updates in ("separate", "gated"):
            figures = self._step_by_parts(images, labels)
        else:
            figures = self._step_jointly(images, labels)
        self.ema.update()
        return figures

    def _step_jointly(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The discriminator on real images and fakes, then the generator on the same fakes, if it is its turn."""
        turn, penalised = self.kind()
        with self.autocast(), torch.set_grad_enabled(turn):
            fakes = self._generate(len(images), labels)
        with self.autocast():
            real_logits = self._judge(images, labels)
            fake_logits = self._judge(fakes.detach(), labels)
        discriminator_loss = self.loss.discriminator(real_logits, fake_logits, self.recipe.real_label)
        figures = self._figures(real_logits, fake_logits) | {"discriminator_loss": discriminator_loss.detach()}
        if penalised:
            penalty = self._penalty(images, fakes.detach(), labels)
            discriminator_loss = discriminator_loss + self.recipe.penalty_every * penalty
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        discriminator_loss.backward()
        if self.recipe.updates == "alternating":
            self.discriminator_optimizer.step()
        if not turn:
            generator_loss = self.loss.generator(real_logits if self.loss.fake is None else None, fake_logits)
            return figures | {"generator_loss": generator_loss.detach()}

        with _frozen(self.discriminator):
            with self.autocast():
                real_logits_now = self._judge(images, labels) if self.loss.fake is None else None
                generator_loss = self.loss.generator(real_logits_now, self._judge(fakes, labels))
            self.generator_optimizer.zero_grad(set_to_none=True)
            generator_loss.backward()
        if self.recipe.updates == "simultaneous":
            self.discriminator_optimizer.step()
        self.generator_optimizer.step()
        return figures | {"generator_loss": generator_loss.detach()}

    def _step_by_parts(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Real images, fakes, and the generator on new fakes, a step each; gated in another order, and not all."""
        assert self.loss.fake is not None  # the recipe refuses a loss of pairs
        logits: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for part in GATES if self.recipe.updates == "gated" else ("real", "fake", "generator"):
            with self.autocast(), torch.set_grad_enabled(part == "generator"):
                shown = images if part == "real" else self._generate(len(images), labels)
            self.discriminator.requires_grad_(part != "generator")
            with self.autocast():
                logits[part] = self._judge(shown, labels)
            if part == "real":
                losses[part] = self.loss.real(logits[part], self.recipe.real_label)
            elif part == "fake":
                losses[part] = self.loss.fake(logits[part])
            else:
                losses[part] = self.loss.generator(None, logits[part])
            self._descend(losses[part], part)
        self.discriminator.requires_grad_(True)
        return self._figures(logits["real"], logits["fake"]) | {
            "discriminator_loss": (losses["real"] + losses["fake"]).detach(),
            "generator_loss": losses["generator"].detach(),
        }

    def _generate(self, count: int, labels: Tensor | None) -> Tensor:
        fakes: Tensor = self.generator(self.noise.normal(count, self.recipe.latent), labels)
        return fakes

    def _judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator(self._augment(images), labels)
        return logits.float()

    def _augment(self, images: Tensor) -> Tensor:
        return augment(images, self.changes, self.noise, self.data_range)

    def _descend(self, loss: Tensor, part: str) -> None:
        if self.recipe.updates == "gated" and self.ranks.average(loss.detach().clone()).item() <= GATES[part]:
            return
        optimizer = self.generator_optimizer if part == "generator" else self.discriminator_optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def _penalty(self, images: Tensor, fakes: Tensor, labels: Tensor | None) -> Tensor:
        """In fp32: squares of small gradients would be lost in bf16. By the images as they are before `augment`."""
        images, fakes = images.float(), fakes.float()
        judge = partial(self._judge, labels=labels)
        if self.recipe.penalty == "interpolated":
            share = self.noise.uniform(len(images) // self.recipe.pack).repeat_interleave(self.recipe.pack)
            penalty = interpolated_penalty(judge, images, fakes, share)
        else:
            penalty = zero_centred_penalty(judge, images)
            if self.recipe.penalty == "r1-r2":
                penalty = penalty + zero_centred_penalty(judge, fakes)
        return self.recipe.penalty_weight * penalty

    @torch.no_grad()
    def _figures(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """What the documents look at: how the discriminator judges; 0.5 each when it can no longer tell."""
        real, fake = self.loss.probability(real_logits), self.loss.probability(fake_logits)
        return {
            "discriminator_accuracy": 0.5 * ((real > 0.5).float().mean() + (fake < 0.5).float().mean()),
            "discriminator_of_real": real.mean(),
            "discriminator_of_fake": fake.mean(),
        }

    def _refuse_norms_over_ranks(self) -> None:
        if any(isinstance(module, _BatchNorm) for module in self.discriminator.modules()):
            raise InputError(
                f"penalty {self.recipe.penalty}: batch normalisation over several ranks cannot be differentiated "
                "twice; train on one, set norm_statistics: local, or take a model whose discriminator has none"
            )

    def schedule(self, kimg: float) -> tuple[float, float, float]:
        """The learning rates of generator and discriminator and the average's weight in force after `kimg`."""
        factor, weight = learning_rate_factor(self.recipe, kimg), weight_of_new(self.recipe, kimg)
        return self.recipe.generator_lr * factor, self.recipe.discriminator_lr * factor, weight

    def set_progress(self, kimg: float, numbers: Sequence[Number] | None = None) -> None:
        """Count steps, and set the learning rates and the weight."""
        self.steps = round(kimg * 1000 / self.recipe.batch)
        of_generator, of_discriminator, self.ema.weight_of_new = numbers or self.schedule(kimg)
        self.generator_optimizer.param_groups[0]["lr"] = of_generator
        self.discriminator_optimizer.param_groups[0]["lr"] = of_discriminator

    def kind(self) -> tuple[bool, bool]:
        """Whether it is the generator's turn, and whether a penalty is due."""
        turn = (self.steps + 1) % self.recipe.discriminator_steps == 0
        return turn, self.recipe.penalty != "none" and self.steps % self.recipe.penalty_every == 0

    def reads_back(self) -> str:
        """Gated updates look at each loss; microbatches keep random states aside."""
        if self.recipe.updates == "gated":
            return "updates: gated looks at a loss before each step"
        return "microbatch runs forward passes twice" if self.recipe.microbatch else ""

    def generators(self) -> list[torch.Generator]:
        """The one of the noise."""
        return [self.noise.generator]

    def optimizers(self) -> list[Optimizer]:
        """One a network."""
        return [self.discriminator_optimizer, self.generator_optimizer]

    def sampling_network(self) -> nn.Module:
        """The averaged generator."""
        return self.ema.network

    def finish(self, batches: Callable[[], Batches]) -> None:
        """Nothing remains to be done."""

    def companions(self) -> dict[str, nn.Module]:
        """A discriminator is of no use to a sampler."""
        return {}

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def state_dict(self) -> dict[str, Any]:
        """Networks, average, optimisers and the state of the noise."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state saved by `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.noise.set_state(state["noise"])

"""Losses and augmentations of the user's own, each tried on a few numbers before a training begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atelier.errors import AtelierError
from atelier.models import ImageShape
from atelier.models.recipe import GanRecipe, Recipe
from atelier.own import LOSS, Part
from atelier.ranks import Noise, Ranks
from atelier.training.augmentation import Augmentation
from atelier.training.losses import AdversarialLoss

COUNT = 4  # logits or images that each is tried on


@dataclass(frozen=True)
class Own:
    """What a recipe names of the user's own, by name."""

    losses: dict[str, AdversarialLoss] = field(default_factory=dict)
    augmentations: dict[str, Augmentation] = field(default_factory=dict)


def load_own(parts: Iterable[Part], recipe: Recipe, shape: ImageShape, ranks: Ranks) -> Own:
    """Run their files and try what they hold; no random number of a training is drawn.

    Raises:
        InputError: if one is not what its kind must be; the line names file and line, as do those below.
        AtelierError: if it fails, or gives something of another shape, not finite, or without a gradient.
    """
    own = Own()
    for part in parts:
        found = part.load()
        with torch.random.fork_rng(devices=[]):
            if part.kind is LOSS:
                own.losses[part.name] = _tried_loss(part, found)
                if found.fake is None and isinstance(recipe, GanRecipe) and recipe.updates in ("separate", "gated"):
                    raise part.refused("is one of pairs, which does not go with the run's updates")
            else:
                own.augmentations[part.name] = _tried_augmentation(part, found, shape, ranks)
    return own


def _tried_loss(part: Part, found: Any) -> AdversarialLoss:
    if not isinstance(found, AdversarialLoss):
        raise part.refused(f"is {type(found).__name__}, not AdversarialLoss(...)")
    real, fake = (torch.linspace(-2, 2, COUNT, requires_grad=True) for _ in range(2))
    _try(part, "discriminator", lambda: found.discriminator(real, fake), (), fake)
    _try(part, "generator", lambda: found.generator(real if found.fake is None else None, fake), (), fake)
    _try(part, "probability", lambda: found.probability(real), (COUNT,), None)
    return found


def _tried_augmentation(part: Part, found: Any, shape: ImageShape, ranks: Ranks) -> Augmentation:
    if not callable(found):
        raise part.refused(f"is {type(found).__name__}, not a function of images and noise")
    size = (COUNT, shape.channels, shape.height, shape.width)
    images = torch.linspace(-1, 1, COUNT * shape.channels * shape.height * shape.width, device=ranks.device)
    images = images.view(size).requires_grad_()
    noise = Noise(0, ranks)
    _try(part, "result", lambda: found(images, noise), size, images)
    augment: Augmentation = found
    return augment


def _try(part: Part, what: str, value: Callable[[], Any], size: tuple[int, ...], by: Tensor | None) -> None:
    """Compute something; what of it cannot be learned from is told."""
    try:
        result = value()
        if by is not None and isinstance(result, Tensor) and result.requires_grad:
            torch.autograd.grad(result.sum(), by)
    except AtelierError:
        raise
    except Exception as error:  # whatever code of the user's own may raise
        raise part.failed(error) from None
    if not isinstance(result, Tensor) or tuple(result.shape) != size:
        kind = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise part.refused(f"has a {what} of {kind}, it must be a tensor of {size or 'one number'}")
    if not result.isfinite().all():
        raise part.refused(f"has a {what} that is not finite")
    if by is not None and not result.requires_grad:
        raise part.refused(f"has a {what} without a gradient")

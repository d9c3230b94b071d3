"""Training: a loop that knows no losses, methods that know no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from atelier.models import Model
    from atelier.models.recipe import Recipe
    from atelier.ranks import Ranks
    from atelier.training.method import Method
    from atelier.training.own import Own


def build_method(
    entry: Model,
    recipe: Recipe,
    networks: dict[str, nn.Module],
    classes: int,
    ranks: Ranks,
    own: Own | None = None,
) -> Method:
    """The method of a model, over its freshly built networks."""
    if entry.method == "gan":
        from atelier.training.gan import Gan

        return Gan(networks, recipe, entry.data_range, ranks, own)
    from atelier.training.vae import Vae

    return Vae(networks, recipe, classes, ranks)

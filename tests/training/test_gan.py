from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from atelier.errors import InputError
from atelier.models import MODELS, ImageShape, build_networks
from atelier.models.recipe import GanRecipe
from atelier.ranks import Ranks
from atelier.training.gan import GATES, Gan

SHAPE = ImageShape(8, 8, 1, 0)
BASE = {
    "kimg": 1.0,
    "batch": 16,
    "latent": 4,
    "width": 8,
    "generator_lr": 1e-2,
    "discriminator_lr": 1e-2,
    "precision": "fp32",
}


def make(model: str = "vanilla", ranks: Ranks | None = None, **changes: Any) -> Gan:
    recipe = GanRecipe.model_validate(BASE | changes)
    torch.manual_seed(0)
    networks = build_networks(model, recipe, SHAPE)
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return Gan(networks, recipe, "symmetric", ranks or Ranks())


def images(seed: int = 0) -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


EVERY_KIND: list[dict[str, Any]] = [
    *({"loss": loss} for loss in ("bce", "minimax", "least-squares", "hinge", "wasserstein", "relativistic")),
    *({"updates": updates} for updates in ("simultaneous", "separate", "gated")),
    {"discriminator_optimizer": "rmsprop", "discriminator_lr": 1e-3},
    {"spectral_norm": True, "loss": "hinge"},
    {"pack": 4, "penalty": "r1", "spectral_norm": True},
    {"loss": "relativistic", "penalty": "r1-r2", "penalty_every": 2, "ema_half_life_kimg": 0.1},
    {"loss": "wasserstein", "penalty": "interpolated"},
    {"loss": "relativistic", "discriminator_steps": 2},
    {"augment": ["colour", "translation", "cutout"], "mirror": True, "real_label": 0.9},
]


@pytest.mark.parametrize("changes", EVERY_KIND, ids=str)
def test_both_networks_learn_and_go_on_bit_for_bit_from_a_state(changes: dict[str, Any]) -> None:
    gan = make(**changes)
    before = weights(gan.generator), weights(gan.discriminator)

    def go_on(method: Gan, first: int, last: int) -> dict[str, Tensor]:
        for step in range(first, last):
            method.set_progress(step * 16 / 1000)
            figures = method.step(images(step), None)
        return figures

    go_on(gan, 0, 3)
    state = copy.deepcopy(gan.state_dict())
    figures = go_on(gan, 3, 6)
    assert all(value.ndim == 0 and value.isfinite() for value in figures.values())
    assert not torch.equal(before[0], weights(gan.generator))
    assert not torch.equal(before[1], weights(gan.discriminator))
    resumed = make(**changes)
    resumed.load_state_dict(state)
    go_on(resumed, 3, 6)
    assert torch.equal(weights(gan.generator), weights(resumed.generator))
    assert torch.equal(weights(gan.discriminator), weights(resumed.discriminator))


def test_simultaneous_generator_learns_from_the_discriminator_as_it_was() -> None:
    gan, other = make(updates="simultaneous"), make()
    noise = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.softplus(-other.discriminator(other.generator(noise))).mean()
    expected = torch.autograd.grad(loss, list(other.generator.parameters()))
    gan.step(images(), None)
    for parameter, gradient in zip(gan.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    other.step(images(), None)  # alternating: it learns from the discriminator after its step
    first = next(other.generator.parameters())
    assert not torch.allclose(first.grad, expected[0])  # type: ignore[arg-type]


def test_the_generator_learns_once_in_so_many_steps_of_the_discriminator() -> None:
    gan = make(discriminator_steps=3)
    learned = []
    for step in range(6):
        before = weights(gan.generator), weights(gan.discriminator)
        gan.set_progress(step * 16 / 1000)
        gan.step(images(step), None)
        learned.append(not torch.equal(before[0], weights(gan.generator)))
        assert not torch.equal(before[1], weights(gan.discriminator))
    assert learned == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("updates", "order"),
    [("separate", ["real", "fake", "generator"]), ("gated", ["fake", "generator", "real"])],
)
def test_the_parts_of_a_step_come_in_the_documents_order(
    updates: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    monkeypatch.setattr(Gan, "_descend", lambda gan, loss, part: parts.append(part))
    make(updates=updates).step(images(), None)
    assert parts == order


def test_gated_steps_are_left_out_where_the_loss_is_small() -> None:
    gan = make(updates="gated")
    with torch.no_grad():
        gan.discriminator[-2].bias.fill_(9.0)  # type: ignore[index, union-attr]  # all images are real, it says
    discriminator, generator = weights(gan.discriminator), weights(gan.generator)
    figures = gan.step(images(), None)
    assert figures["generator_loss"] < GATES["generator"]
    assert torch.equal(generator, weights(gan.generator))
    assert not torch.equal(discriminator, weights(gan.discriminator))  # on fakes its loss is large
    with torch.no_grad():
        gan.discriminator[-2].weight.zero_()  # type: ignore[index, union-attr]
        gan.discriminator[-2].bias.fill_(0.3)  # type: ignore[index, union-attr]
    discriminator, generator = weights(gan.discriminator), weights(gan.generator)
    gan.step(images(), None)
    assert not torch.equal(discriminator, weights(gan.discriminator))
    assert not torch.equal(generator, weights(gan.generator))


def test_a_lazy_penalty_comes_every_so_many_steps_and_so_many_times_stronger() -> None:
    gradients = []
    for every, step in ((1, 4), (4, 4), (4, 5)):
        gan = make(penalty="r1", penalty_weight=100.0, penalty_every=every, discriminator_lr=1e-12)
        gan.set_progress(step * 16 / 1000)
        gan.step(images(), None)
        gradients.append(gan.discriminator[1].weight.grad)  # type: ignore[index, union-attr]
    always, now, not_now = gradients
    torch.testing.assert_close(now - not_now, 4 * (always - not_now), rtol=1e-3, atol=1e-5)
    assert (always - not_now).abs().max() > 1e-4


def test_a_penalty_is_on_gradients_by_the_images_before_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = make(penalty="r1", penalty_weight=1.0)
    plain = gan._penalty(images(), images(), None)
    first = gan.discriminator[1]  # type: ignore[index]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.div_(3)
    monkeypatch.setattr("atelier.training.gan.augment", lambda images, *settings: 3 * images)
    torch.testing.assert_close(gan._penalty(images(), images(), None), plain)


def test_a_pack_is_interpolated_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Tensor] = []

    def penalty(judge: Any, reals: Tensor, fakes: Tensor, share: Tensor) -> Tensor:
        shares.append(share)
        return judge(reals).sum()

    monkeypatch.setattr("atelier.training.gan.interpolated_penalty", penalty)
    make(pack=4, penalty="interpolated").step(images(), None)
    assert (shares[0].view(4, 4) == shares[0].view(4, 4)[:, :1]).all()
    assert len(shares[0].unique()) == 4


def test_spectral_norm_bounds_every_layer() -> None:
    gan = make(spectral_norm=True)
    for step in range(30):
        gan.step(images(step), None)
    for module in gan.discriminator.modules():
        if isinstance(module, nn.Linear):
            assert float(torch.linalg.matrix_norm(module.weight.detach(), 2)) == pytest.approx(1, abs=0.1)


def test_the_sampler_of_a_model_with_spectral_norm_has_plain_weights() -> None:
    assert all("parametrizations" not in key for key in make(spectral_norm=True).sampling_network().state_dict())


def test_a_packed_discriminator_sees_images_beside_one_another() -> None:
    discriminator = make(pack=4).discriminator
    assert discriminator(images(), None).shape == (4,)
    batch = images().requires_grad_()
    (seen,) = torch.autograd.grad(discriminator(batch, None)[1], batch)
    assert [bool(gradient.any()) for gradient in seen] == [4 <= image < 8 for image in range(16)]


def test_packs_stay_whole_over_ranks() -> None:
    make(pack=4, ranks=Ranks(0, 4))
    with pytest.raises(InputError, match="pack 8: batch 16 does not split over 4 ranks into whole packs"):
        make(pack=8, ranks=Ranks(0, 4))


def test_figures_say_what_the_documents_ask() -> None:
    gan = make()
    with torch.no_grad():
        gan.discriminator[-2].weight.zero_()  # type: ignore[index, union-attr]
        gan.discriminator[-2].bias.zero_()  # type: ignore[index, union-attr]
    figures = {name: float(value) for name, value in gan.step(images(), None).items()}
    assert figures["discriminator_of_real"] == figures["discriminator_of_fake"] == 0.5
    assert figures["discriminator_loss"] == pytest.approx(2 * 0.6931, abs=1e-3)
    assert set(figures) == {
        *("discriminator_loss", "generator_loss", "discriminator_accuracy"),
        *("discriminator_of_real", "discriminator_of_fake"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": "gated", "penalty": "r1"}, "penalty: 'r1' does not go with updates: gated"),
        ({"updates": "separate", "loss": "relativistic"}, "loss: 'relativistic' does not go with updates: separate"),
        ({"updates": "gated", "discriminator_steps": 5}, "discriminator_steps: does not go with updates: gated"),
        ({"loss": "hinge", "real_label": 0.9}, "real_label: loss 'hinge' has no labels to smooth"),
        ({"compile": True, "penalty": "r1"}, "penalty: 'r1' differentiates twice, compile cannot"),
        ({"microbatch": 4, "penalty": "r1"}, "penalty: 'r1' differentiates twice, microbatch cannot"),
        ({"microbatch": 4, "compile": True}, "microbatch: compile cannot take its pieces"),
        ({"microbatch": 2}, "microbatch: batch normalisation needs 2 images in every piece"),
        ({"pack": 3}, "pack: batch 16 is not a multiple of 3"),
        ({"pack": 4, "microbatch": 4}, "pack: does not go with microbatch"),
        ({"spectral_norm": True, "microbatch": 4}, "spectral_norm: does not go with microbatch"),
    ],
)
def test_recipes_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GanRecipe.model_validate(BASE | changes)


def test_a_penalty_over_ranks_is_refused_where_batch_normalisation_would_make_it_wrong() -> None:
    recipe = GanRecipe.model_validate(BASE | {"penalty": "r1"})
    networks = build_networks("cgan", recipe, ImageShape(16, 16, 1, 0))
    Gan(networks, recipe, "symmetric", Ranks())
    with pytest.raises(InputError, match="penalty r1: batch normalisation over several ranks"):
        Gan(networks, recipe, "symmetric", Ranks(0, 2))


def test_refine_trains_by_its_gates_from_truncated_noise() -> None:
    recipe = MODELS["refine"].recipe
    assert isinstance(recipe, GanRecipe)
    assert (recipe.updates, recipe.real_label, recipe.batch) == ("gated", 0.9, 50)

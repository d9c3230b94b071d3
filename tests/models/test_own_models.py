from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import nn

from atelier.models import MODELS, ImageShape, build_networks, build_sampling_network
from atelier.models.prior import RIDGE, ClassPrior, fit_mixture
from atelier.models.pyramid import seen_side

SHAPES = [ImageShape(28, 28, 1, 10), ImageShape(64, 64, 3, 18), ImageShape(32, 32, 3, 0), ImageShape(128, 128, 3, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cgan_maps_noise_to_images_and_images_to_logits(shape: ImageShape) -> None:
    recipe = MODELS["cgan"].recipe
    networks = build_networks("cgan", recipe, shape)
    labels = torch.arange(4) % shape.classes if shape.classes else None
    images = networks["generator"](torch.randn(4, recipe.noise), labels)
    assert images.shape == (4, shape.channels, shape.height, shape.width)
    assert images.abs().max() <= 1
    assert networks["discriminator"](images, labels).shape == (4,)


@pytest.mark.parametrize(("side", "dense"), [(28, True), (64, False)])
def test_cgan_judges_the_whole_image_where_its_maps_see_little_of_it(side: int, dense: bool) -> None:
    discriminator = build_networks("cgan", MODELS["cgan"].recipe, ImageShape(side, side, 1, 0))["discriminator"]
    image = torch.randn(1, 1, side, side, requires_grad=True)
    maps = discriminator.first(image)
    for down in discriminator.downs:
        maps = down(maps)
    middle = maps.shape[-1] // 2
    maps[0, :, middle, middle].sum().backward()
    assert image.grad.abs().sum(dim=(0, 1, 3)).count_nonzero() == seen_side(side)
    assert any(isinstance(layer, nn.Linear) for layer in discriminator.whole.modules()) == dense


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cvae_maps_images_to_latents_and_noise_to_images(shape: ImageShape) -> None:
    recipe = MODELS["cvae"].recipe
    networks = build_networks("cvae", recipe, shape)
    labels = torch.arange(4) % shape.classes if shape.classes else None
    mean, log_variance = networks["encoder"](torch.rand(4, shape.channels, shape.height, shape.width), labels)
    assert mean.shape == log_variance.shape == (4, recipe.latent)
    sampling = build_sampling_network("cvae", recipe, shape)
    images = sampling(torch.randn(4, recipe.noise), labels)
    assert images.shape == (4, shape.channels, shape.height, shape.width)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("name", ["cgan", "cvae"])
def test_labels_change_what_every_network_says(name: str) -> None:
    shape = ImageShape(28, 28, 1, 10)
    recipe = MODELS[name].recipe
    torch.manual_seed(0)
    networks = build_networks(name, recipe, shape)
    ones, twos = torch.full((4,), 1), torch.full((4,), 2)
    for role, network in networks.items():
        inputs = {"generator": recipe.latent, "decoder": recipe.latent}.get(role)
        values = torch.randn(4, inputs) if inputs else torch.rand(4, 1, 28, 28)
        first, second = network(values, ones), network(values, twos)
        first, second = (first[0], second[0]) if isinstance(first, tuple) else (first, second)
        assert not torch.equal(first, second), role


def test_the_prior_is_normal_until_fitted_and_then_draws_from_each_class() -> None:
    prior = ClassPrior(classes=2, latent=3, components=4)
    noise = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20_000) % 2
    assert torch.equal(prior(noise, labels), noise[:, :3])
    # class 0: two far clusters; class 1: one wide Gaussian elsewhere
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(4000, 3, generator=generator)
    classes = torch.arange(4000) % 2
    points[classes == 0] = 0.1 * points[classes == 0] + torch.where(
        torch.rand(2000, 1, generator=generator) < 0.25, 5.0, -5.0
    )
    points[classes == 1] = 2 * points[classes == 1] + 1
    prior.fit(points, classes, seed=0)
    drawn = prior(noise, labels)
    assert (drawn[labels == 0] > 0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert drawn[labels == 0].abs().mean() == pytest.approx(5, abs=0.05)
    assert drawn[labels == 1].mean() == pytest.approx(1, abs=0.1)
    assert drawn[labels == 1].std() == pytest.approx(2, abs=0.1)


def test_the_mixture_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    points = (
        torch.randn(600, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    )
    points[:200] += 3
    start = points[torch.tensor([0, 300, 500])]
    mixture = GaussianMixture(
        3,
        weights_init=[1 / 3] * 3,
        means_init=start.numpy(),
        precisions_init=torch.eye(5).div(RIDGE).repeat(3, 1, 1).numpy(),
        reg_covar=RIDGE,
        max_iter=20,
        tol=0,
    )
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        mixture.fit(points.numpy())
    for ours, theirs in zip(
        fit_mixture(points, start), (mixture.weights_, mixture.means_, mixture.covariances_), strict=True
    ):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-6, atol=1e-8)


def test_a_class_without_pictures_keeps_the_normal_prior() -> None:
    prior = ClassPrior(classes=3, latent=2, components=2)
    prior.fit(torch.randn(50, 2) + 9, torch.zeros(50, dtype=torch.long), seed=0)
    noise = torch.randn(6, 3)
    assert torch.equal(prior(noise, torch.full((6,), 2)), noise[:, :2])
    assert (prior(noise, torch.zeros(6, dtype=torch.long)) > 4).all()

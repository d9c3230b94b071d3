from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from atelier.models import MODELS, ImageShape, build_networks
from atelier.models.likelihood import Bernoulli, Gaussian, Logistic
from atelier.models.recipe import VaeRecipe
from atelier.ranks import Ranks
from atelier.training.vae import Vae

SHAPE = ImageShape(8, 8, 1, 0)


def make(shape: ImageShape = SHAPE, **changes: Any) -> Vae:
    base = {"kimg": 1.0, "batch": 64, "latent": 4, "width": 32, "lr": 1e-2, "precision": "fp32"}
    recipe = VaeRecipe.model_validate(base | changes)
    torch.manual_seed(0)
    return Vae(build_networks("pokemon-dense", recipe, shape), recipe, 0, Ranks())


def images(seed: int = 0) -> Tensor:
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def weights(vae: Vae) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in vae.networks.parameters()])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"likelihood": "gaussian", "mirror": True},
        {"divergence": "sampled", "binarise": True},
        {"dynamic_binarisation": True},
        {"likelihood": "logistic"},
    ],
    ids=str,
)
def test_a_vae_goes_on_bit_for_bit_from_a_state(changes: dict[str, Any]) -> None:
    vae = make(**changes)
    for step in range(3):
        vae.step(images(step), None)
    state = copy.deepcopy(vae.state_dict())
    resumed = make(**changes)
    resumed.load_state_dict(state)
    for method in (vae, resumed):
        for step in range(3, 6):
            method.step(images(step), None)
    assert torch.equal(weights(vae), weights(resumed))


@pytest.mark.parametrize(("kimg", "beta"), [(0.01, 0.02), (0.25, 0.5), (1.0, 2.0), (3.0, 2.0)])
def test_beta_grows_over_the_warm_up(kimg: float, beta: float) -> None:
    growing, fixed = make(beta=2.0, beta_warmup_kimg=1.0), make(beta=beta)
    for vae in (growing, fixed):
        vae.set_progress(kimg)
        vae.step(images(), None)
    assert torch.equal(weights(growing), weights(fixed))


def test_the_sampled_divergence_is_the_closed_one_on_average() -> None:
    vaes = make(), make(divergence="sampled")
    with torch.no_grad():
        for vae in vaes:
            vae.networks["encoder"][-1].bias.copy_(torch.tensor([1.0, -1, 0, 2, 0.5, -0.5, 0, 1]))  # type: ignore[index]
    batch = images().repeat(500, 1, 1, 1)
    closed, sampled = (float(vae.step(batch, None)["divergence"]) for vae in vaes)
    assert sampled == pytest.approx(closed, rel=0.03)


def test_the_shared_variance_is_learned() -> None:
    vae = make(likelihood="gaussian", lr=2e-2)
    means = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(9)) * 0.5 + 0.25
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        vae.step(means + 0.1 * torch.randn(64, 1, 8, 8, generator=generator), None)
    likelihood = vae.networks["likelihood"]
    assert isinstance(likelihood, Gaussian)
    assert likelihood.log_variance.exp().sqrt().item() == pytest.approx(0.1, rel=0.05)


def test_likelihoods_are_torchs_distributions() -> None:
    output, batch = torch.randn(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    gaussian = Gaussian()
    expected = torch.distributions.Normal(torch.sigmoid(output), (0.5 * gaussian.log_variance).exp()).log_prob(batch)
    torch.testing.assert_close(gaussian.log_prob(output, batch), expected.sum((1, 2, 3)))
    bits = (batch > 0.5).float()
    bernoulli = torch.distributions.Bernoulli(logits=output).log_prob(bits)
    torch.testing.assert_close(Bernoulli().log_prob(output, bits), bernoulli.sum((1, 2, 3)))


def test_what_is_computed_faster_without_gradients_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    output, grey = torch.randn(5, 3, 40, 40) * 100, torch.rand(5, 3, 40, 40)
    expected = Bernoulli().log_prob(output, grey)
    monkeypatch.delattr("torch.nn.functional.binary_cross_entropy_with_logits")
    with torch.no_grad():
        torch.testing.assert_close(Bernoulli().log_prob(output, grey), expected)


def logistic(log_scale: float) -> Logistic:
    likelihood = Logistic()
    likelihood.log_scale.data.fill_(log_scale)
    return likelihood


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0])
def test_the_probabilities_of_the_256_levels_are_those_of_a_logistic_distribution(log_scale: float) -> None:
    output = torch.tensor([-9.0, -1.5, 0.0, 0.4, 9.0])
    levels = (torch.arange(256) / 255).view(256, 1, 1, 1).repeat(5, 1, 1, 1)
    found = logistic(log_scale).log_prob(output.repeat_interleave(256).view(-1, 1, 1, 1), levels).view(5, 256)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5), atol=1e-4, rtol=0)
    squeezed = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros(5, 1).double(), torch.ones(5, 1).double()),
        [
            torch.distributions.SigmoidTransform().inv,
            torch.distributions.AffineTransform(output[:, None].double().sigmoid(), math.exp(log_scale)),
        ],
    )
    ends = squeezed.cdf((torch.arange(255).double() + 0.5) / 255)
    expected = torch.cat([ends, torch.ones(5, 1)], 1) - torch.cat([torch.zeros(5, 1), ends], 1)
    certain = expected > 1e-9  # where the difference in float64 is still one
    torch.testing.assert_close(found[certain].double(), expected[certain].log(), atol=2e-3, rtol=1e-4)
    assert found.isfinite().all()


def test_with_a_logistic_likelihood_colours_are_learned() -> None:
    vae = make(likelihood="logistic", lr=1e-2, shape=ImageShape(8, 8, 3, 0))
    colours = torch.randint(0, 256, (64, 3, 1, 1), generator=torch.Generator().manual_seed(0)).div(255)
    pictures = colours.expand(-1, -1, 8, 8).contiguous()
    bits = [-float(vae.step(pictures, None)["elbo"]) / math.log(2) / pictures[0].numel() for _ in range(300)]
    assert bits[0] > 7
    assert bits[-1] < 5
    mean = vae.networks["encoder"](pictures, None)[0]
    assert mean.std(0).max() > 0.5, "all pictures have one latent"


def test_levels_that_are_binarised_away_are_refused() -> None:
    with pytest.raises(ValidationError, match="binarise: leaves none of the 256 levels"):
        make(likelihood="logistic", binarise=True)


def test_binarised_images_are_learned_as_zeros_and_ones() -> None:
    vae = make(binarise=True)
    seen: list[Tensor] = []
    vae.networks["encoder"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    vae.step(images(), None)
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(seen[0] == 1, images() > 0.5)


def test_dynamically_binarised_pixels_are_1_as_often_as_they_are_bright() -> None:
    vae = make(dynamic_binarisation=True, mirror=False)
    seen: list[Tensor] = []
    vae.networks["encoder"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    grey = images(seed=1)  # of the noise's own seed they would be the noise
    for _ in range(200):
        vae.step(grey, None)
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(torch.stack(seen).mean(0), grey, atol=0.2, rtol=0)
    with pytest.raises(ValidationError, match="dynamic_binarisation: goes with likelihood: bernoulli"):
        make(dynamic_binarisation=True, binarise=True)


def test_the_prior_is_fitted_to_what_the_encoder_was_trained_on() -> None:
    vae = make(binarise=True, prior_components=2)
    vae.step(images(), None)
    seen: list[Tensor] = []
    vae.ema.network.get_submodule("encoder").register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    vae.finish(lambda: [(images(), None)])
    assert torch.equal(seen[0], (images() > 0.5).float())


def test_the_tutorial_is_trained_as_its_document_says() -> None:
    recipe = MODELS["cvae-tutorial"].recipe
    assert isinstance(recipe, VaeRecipe)
    assert (recipe.batch, recipe.lr, recipe.kimg, recipe.latent) == (32, 1e-4, 600, 2)
    assert recipe.binarise
    assert recipe.divergence == "sampled"
    assert not recipe.labels

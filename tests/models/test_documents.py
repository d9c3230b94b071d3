"""The systems of the five documents, layer by layer, and the one of a paper, `dense-vae`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from atelier.errors import InputError
from atelier.models import MODELS, ImageShape, build_networks, build_sampling_network, count_parameters
from atelier.models.layers import ConvSame, Reshape, truncated_normal, upward
from atelier.models.refine import twice_the_side
from atelier.ranks import Ranks
from atelier.training import build_method

# trainable parameters, from the documents
COUNTS = {
    "vanilla": {"generator": 1_486_352, "discriminator": 1_460_225},
    "dense": {"generator": 1_486_352, "discriminator": 80_769},
    "refine": {"generator": 328_537, "discriminator": 3_265_409},
    "dcgan": {"generator": 2_009_219, "discriminator": 675_265},
    "fashion": {"generator": 259_521, "discriminator": 21_121},
    "cvae-tutorial": {"encoder": 28_036, "decoder": 41_953},
    "pokemon-dense": {"encoder": 790_656, "decoder": 800_832},
    "pokemon-conv": {"encoder": 617_600, "decoder": 363_459},
    "pokemon-gan": {"generator": 3_852_931, "discriminator": 55_105},
    "dense-vae": {"encoder": 217_300, "decoder": 207_984},
}

# what comes out of each layer that has parameters: features, or channels × side × side
LAYERS = {
    "vanilla": {"generator": "256 512 1024 784", "discriminator": "1024 512 256 1"},
    "dense": {"generator": "256 512 1024 784", "discriminator": "64x14x14 128x7x7 1"},
    "refine": {
        "generator": "3136 50x28x28 25x28x28 1x28x28",
        "discriminator": "32x28x28 64x14x14 1024 1",
    },
    "dcgan": {
        "generator": "8192 256x16x16 128x32x32 64x64x64 3x64x64",
        "discriminator": "64x32x32 128x16x16 256x8x8 1",
    },
    "fashion": {"generator": "3136 64x14x14 32x28x28 1x28x28", "discriminator": "32x13x13 64x6x6 1"},
    "cvae-tutorial": {"encoder": "32x13x13 64x6x6 4", "decoder": "1568 64x14x14 32x28x28 1x28x28"},
    "pokemon-dense": {"encoder": "64 64", "decoder": "64 12288"},
    "pokemon-conv": {"encoder": "32x32x32 64x16x16 128x8x8 64", "decoder": "8192 64x16x16 32x32x32 3x64x64"},
    "pokemon-gan": {
        "generator": "32768 128x32x32 128x64x64 3x64x64",
        "discriminator": "64x32x32 64x16x16 1",
    },
    "dense-vae": {"encoder": "200 200 100", "decoder": "200 200 784"},
}


def networks_of(name: str, classes: int = 0) -> tuple[dict[str, nn.Module], ImageShape]:
    home = MODELS[name].home
    shape = ImageShape(home.height, home.width, home.channels, classes)
    torch.manual_seed(0)
    return build_networks(name, MODELS[name].recipe, shape), shape


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_documents(name: str) -> None:
    assert count_parameters(name) == COUNTS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_the_shape_of_the_document(name: str) -> None:
    networks, shape = networks_of(name)
    for role, expected in LAYERS[name].items():
        seen: list[str] = []
        for module in networks[role].modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(
                    lambda layer, inputs, output, seen=seen: seen.append("x".join(map(str, output.shape[1:])))
                )
        inputs = (
            torch.randn(2, MODELS[name].recipe.latent)
            if role in ("generator", "decoder")
            else torch.rand(2, shape.channels, shape.height, shape.width)
        )
        networks[role](inputs)
        assert " ".join(seen) == expected, role


# batch, latent, optimisers and order of updates, from the documents; what they do not give is in the docstrings
KERAS = {"epsilon": 1e-7}
TRAINED: dict[str, dict[str, object]] = {
    "vanilla": {"batch": 100, "generator_lr": 2e-4, "discriminator_lr": 2e-4, "beta1": 0.9},
    "dense": {"generator_lr": 2e-4, "discriminator_lr": 2e-4, "beta1": 0.5, "updates": "separate"} | KERAS,
    "refine": {
        "batch": 50,
        "kimg": pytest.approx(50_000 * 0.050),
        "generator_lr": 1e-4,
        "discriminator_lr": 1e-4,
        "beta1": 0.9,
        "real_label": 0.9,
        "updates": "gated",
    },
    "dcgan": {"generator_lr": 2e-4, "discriminator_lr": 2e-4, "beta1": 0.5, "updates": "simultaneous"},
    "fashion": {
        "batch": 512,
        "kimg": pytest.approx(50 * 117 * 0.512),
        "latent": 64,
        "updates": "simultaneous",
        "generator_lr": 1e-3,
        "beta1": 0.5,
        "discriminator_lr": 5e-3,
        "discriminator_optimizer": "rmsprop",
        **KERAS,
    },
    "cvae-tutorial": {"batch": 32, "kimg": 600, "latent": 2, "lr": 1e-4, "binarise": True, "beta": 1.0} | KERAS,
    "pokemon-dense": {"kimg": 30, "latent": 32, "lr": 1e-3, "likelihood": "bernoulli", "beta": 1.0} | KERAS,
    "pokemon-conv": {"kimg": 30, "lr": 1e-3, "likelihood": "bernoulli", "beta": 1.0} | KERAS,
    "pokemon-gan": {"latent": 100, "generator_lr": 2e-4, "discriminator_lr": 2e-4, "beta1": 0.5} | KERAS,
}


@pytest.mark.parametrize("name", TRAINED)
def test_each_is_trained_as_its_document_does(name: str) -> None:
    recipe = MODELS[name].recipe
    assert {key: getattr(recipe, key) for key in TRAINED[name]} == TRAINED[name]
    # what a document does not ask for is not there
    plain = {"loss": "bce", "penalty": "none", "augment": [], "pack": 1, "spectral_norm": False, "lr_decay": "none"}
    assert all(getattr(recipe, key, value) == value for key, value in plain.items())


@pytest.mark.parametrize("name", TRAINED)
def test_the_optimisers_are_those_of_the_recipe(name: str) -> None:
    networks, shape = networks_of(name)
    entry = MODELS[name]
    for optimizer in build_method(entry, entry.recipe, networks, shape.classes, Ranks()).optimizers():
        assert optimizer.defaults["eps"] == entry.recipe.epsilon
        if isinstance(optimizer, torch.optim.RMSprop):
            assert optimizer.defaults["alpha"] == 0.9


@pytest.mark.parametrize("name", ["vanilla", "dense", "fashion", "dcgan", "pokemon-gan"])
def test_slopes_and_dropout_of_discriminators(name: str) -> None:
    modules = list(networks_of(name)[0]["discriminator"].modules())
    slopes = {module.negative_slope for module in modules if isinstance(module, nn.LeakyReLU)}
    dropout = [module.p for module in modules if isinstance(module, nn.Dropout)]
    assert slopes == (set() if name == "fashion" else {0.2})
    assert dropout == {"vanilla": [0.3, 0.3, 0.3], "pokemon-gan": [0.2, 0.4]}.get(name, [])


def test_dcgan_starts_from_small_normal_weights() -> None:
    for network in networks_of("dcgan")[0].values():
        for name, parameter in network.named_parameters():
            size = parameter.square().mean().sqrt().item()
            assert size == (pytest.approx(0.02, rel=0.1) if name.endswith("weight") else 0), name


@pytest.mark.parametrize("name", COUNTS)
def test_images_are_in_the_range_of_the_data(name: str) -> None:
    entry = MODELS[name]
    _, shape = networks_of(name)
    sampling = build_sampling_network(name, entry.recipe, shape)
    for parameter in sampling.parameters():
        parameter.data.mul_(10)  # far from the small numbers of initial weights
    images = sampling(torch.randn(50, entry.recipe.noise), None)
    assert images.shape == (50, shape.channels, shape.height, shape.width)
    low = -1 if entry.data_range == "symmetric" else 0
    assert low <= images.min() < low + 0.4
    assert 0.7 < images.max() <= 1


@pytest.mark.parametrize("name", COUNTS)
def test_the_same_architecture_takes_images_of_another_size_and_colour(name: str) -> None:
    entry = MODELS[name]
    side = 32
    shape = ImageShape(side, side, 4 - entry.home.channels, 0)
    networks = build_networks(name, entry.recipe, shape)
    images = build_sampling_network(name, entry.recipe, shape)(torch.randn(4, entry.recipe.noise), None)
    assert images.shape == (4, shape.channels, side, side)
    judged = networks["discriminator" if entry.method == "gan" else "encoder"](images.detach(), None)
    assert (judged if isinstance(judged, Tensor) else judged[0]).shape[0] == 4


def test_the_tutorial_with_labels_uses_them() -> None:
    networks, _ = networks_of("cvae-tutorial", classes=10)
    counts = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    assert counts == {"encoder": 28_036 + 10 * 9 * 32, "decoder": 41_953 + 10 * 1568}
    ones, twos = torch.full((4,), 1), torch.full((4,), 2)
    images, latents = torch.rand(4, 1, 28, 28), torch.randn(4, 2)
    assert not torch.equal(networks["encoder"](images, ones)[0], networks["encoder"](images, twos)[0])
    assert not torch.equal(networks["decoder"](latents, ones), networks["decoder"](latents, twos))


def test_same_padding_is_tensorflows() -> None:
    """A kernel that takes its last row and column alone sees the padding at the end, none at the start."""
    layer = ConvSame(1, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    layer.weight.data[0, 0, 2, 2] = 1
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(maps)[0, 0].tolist() == [[10, 0], [0, 0]]
    assert upward(3, 5)(torch.randn(2, 3, 7, 7)).shape == (2, 5, 14, 14)


def test_maps_are_reshaped_in_tensorflows_order() -> None:
    maps = Reshape(2)(torch.arange(12.0)[None])
    assert maps.shape == (1, 3, 2, 2)
    assert maps[0, :, 0, 1].tolist() == [3, 4, 5]  # row 0, column 1, its three channels


def test_truncated_noise_has_the_moments_of_the_truncated_normal() -> None:
    noise = truncated_normal(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert noise.abs().max() <= 2
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.8796, abs=0.005)


def test_refine_is_initialised_as_its_document_says() -> None:
    networks, _ = networks_of("refine")
    for role, network in networks.items():
        for name, parameter in network.named_parameters():
            if role == "discriminator" and name.endswith("bias"):
                assert not parameter.any()
            else:
                assert 0 < parameter.abs().max() <= 0.04, name
    assert networks["generator"].dense.weight.std().item() == pytest.approx(0.02 * 0.88, rel=0.02)


def test_refine_names_the_key_that_leaves_it_without_maps() -> None:
    recipe = MODELS["refine"].recipe.model_copy(update={"latent": 3})
    with pytest.raises(
        InputError, match="latent: model 'refine' has latent / 4 maps, and 3 is too few; take 4 or more"
    ):
        build_networks("refine", recipe, MODELS["refine"].home)


def test_refine_normalises_by_the_batch_when_sampling_too() -> None:
    generator = networks_of("refine")[0]["generator"].eval()
    noise = torch.randn(8, 100)
    assert not torch.allclose(generator(noise)[:4], generator(noise[:4]))


@pytest.mark.parametrize(
    "name", ["dense", "fashion", "cvae-tutorial", "pokemon-dense", "pokemon-conv", "pokemon-gan", "dense-vae"]
)
def test_keras_models_and_the_dense_vae_start_glorot_uniform(name: str) -> None:
    for network in networks_of(name)[0].values():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
                limit = (6 / (fan_in + fan_out)) ** 0.5
                assert 0.95 * limit < module.weight.abs().max() <= limit
                assert not module.bias.any()


def test_the_command_prints_the_counts(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "atelier", "models"]
    printed = json.loads(
        subprocess.run([*command, "--json"], env=environment, capture_output=True, check=True, text=True).stdout
    )
    assert set(printed) == set(MODELS)
    assert {name: printed[name] for name in COUNTS} == COUNTS


def test_refine_resizes_as_tensorflow_1_does() -> None:
    """Even places are the smaller map's own, odd ones between two, the last repeated: legacy `resize_images`."""
    resized = twice_the_side(torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]]))
    assert resized[0, 0].tolist() == [[0, 2, 4, 4], [4, 6, 8, 8], [8, 10, 12, 12], [8, 10, 12, 12]]

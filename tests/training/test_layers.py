"""A batch taken in pieces gives the gradients of the whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from atelier.models import MODELS, ImageShape, build_networks
from atelier.models.layers import Unconditional
from atelier.ranks import Ranks
from atelier.training import build_method
from atelier.training.layers import in_microbatches


@pytest.mark.parametrize("model", ["vanilla", "cvae"])
def test_step_in_pieces_is_the_step(model: str) -> None:
    entry = MODELS[model]
    recipe = entry.recipe.model_copy(update={"batch": 32, "width": 16, "precision": "fp32"})
    shape = ImageShape(28, 28, 1, 0 if entry.labels == "unused" else 10)
    labels = torch.arange(32) % 10 if shape.classes else None
    images = torch.rand(32, 1, 28, 28)
    results = []
    for size in (0, 12):
        torch.manual_seed(0)
        networks = build_networks(model, recipe, shape)
        for network in networks.values():
            in_microbatches(network, size)
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.0  # pieces draw other masks
        method = build_method(entry, recipe, networks, shape.classes, Ranks())
        figures = [method.step(images, labels) for _ in range(3)][-1]
        weights = {f"{role} {key}": value for role, net in networks.items() for key, value in net.state_dict().items()}
        results.append((figures, weights))
    (whole, weights), (pieces, weights_of_pieces) = results
    assert weights.keys() == weights_of_pieces.keys()
    for name, value in whole.items():
        assert float(pieces[name]) == pytest.approx(float(value), rel=1e-4), name


def test_running_figures_move_once_a_piece() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.passes = 0

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            self.passes += 1
            return self.norm(inputs)

    inputs = torch.randn(10, 3, requires_grad=True)
    by_hand, network = Network(), in_microbatches(Network(), 5)
    for piece in inputs.detach().split(5):
        by_hand(piece)
    network(inputs).square().sum().backward()
    assert network.passes == 4
    torch.testing.assert_close(network.norm.running_mean, by_hand.norm.running_mean)
    torch.testing.assert_close(network.norm.running_var, by_hand.norm.running_var)
    assert network.norm.momentum == by_hand.norm.momentum


@pytest.mark.parametrize("training", [True, False])
def test_fakes_without_gradients_are_drawn_in_pieces_too_but_samples_are_not(training: bool) -> None:
    network = in_microbatches(Unconditional(nn.Linear(3, 3)), 4).train(training)
    pieces: list[int] = []
    network[0].register_forward_hook(lambda module, inputs, output: pieces.append(len(inputs[0])))  # type: ignore[index]
    with torch.no_grad():
        network(torch.randn(8, 3))
    assert pieces == ([4, 4] if training else [8])


def test_a_copy_uses_its_own_weights() -> None:
    network = in_microbatches(
        build_networks("vanilla", MODELS["vanilla"].recipe, ImageShape(28, 28, 1, 0))["generator"], 4
    )
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other(torch.randn(8, 100)).abs().max() == 0
    assert network(torch.randn(8, 100)).abs().max() > 0

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from atelier.models import MODELS
from atelier.training.method import Average, weight_of_new


@pytest.mark.parametrize("kimg", [0.0, 0.064, 3.2, 199.0, 201.0, 400.0])
def test_the_half_life_grows_with_what_was_seen_as_in_edm(kimg: float) -> None:
    recipe = MODELS["cgan"].recipe
    # NVlabs/edm, training_loop.py: with half-lives and images in thousands
    ema_halflife = min(10.0, kimg * 0.05)
    ema_beta = 0.5 ** (recipe.batch / 1000 / max(ema_halflife, 1e-8))
    assert weight_of_new(recipe, kimg) == pytest.approx(1 - ema_beta)
    without = recipe.model_copy(update={"ema_rampup": 0.0})
    assert weight_of_new(without, kimg) == pytest.approx(1 - 0.5 ** (recipe.batch / 1000 / 10))


def test_weights_of_some_steps_are_an_average_and_counters_are_not() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network.register_buffer("unit", torch.tensor([1.0, 0.0]))
    average = Average(network, half_life_kimg=1.0)
    first = [tensor.clone() for tensor in (network[0].weight, network[1].running_mean)]
    average.weight_of_new = 0.25
    network(torch.randn(8, 3))
    with torch.no_grad():
        network[0].weight += 1
        network.get_buffer("unit").copy_(torch.tensor([0.0, 1.0]))
    average.update()
    found = average.network
    torch.testing.assert_close(found[0].weight, 0.75 * first[0] + 0.25 * network[0].weight)
    torch.testing.assert_close(found[1].running_mean, 0.75 * first[1] + 0.25 * network[1].running_mean)
    assert found[1].num_batches_tracked == 1
    assert found.get_buffer("unit").tolist() == [0.0, 1.0]  # of unit length still


def test_a_weight_on_the_device_does_what_a_number_does() -> None:
    states = []
    for weight in (0.3, torch.tensor(0.3)):
        torch.manual_seed(0)
        network = nn.Linear(5, 5)
        average = Average(network, half_life_kimg=1.0)
        average.weight_of_new = weight
        nn.init.ones_(network.weight)
        average.update()
        states.append(average.network.state_dict())
    torch.testing.assert_close(*states)


def test_an_averaged_layer_is_as_normalised_as_the_trained_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(spectral_norm(nn.Linear(8, 32)), nn.ReLU(), spectral_norm(nn.Conv1d(1, 8, 4)))
    average = Average(network, half_life_kimg=1.0)
    average.weight_of_new = 0.05
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        loss = network(torch.randn(16, 1, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update()
    for layer in (average.network[0], average.network[2]):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) == pytest.approx(1, abs=0.02)
    again = [tensor.clone() for tensor in average.network.state_dict().values()]
    assert all(map(torch.equal, again, average.network.state_dict().values()))


def test_without_a_half_life_it_is_the_network_to_the_bit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    average = Average(network, half_life_kimg=0.0)
    network(torch.randn(8, 4))
    average.update()
    pairs = itertools.zip_longest(average.network.state_dict().values(), network.state_dict().values())
    assert all(torch.equal(one, other) for one, other in pairs)

"""DINOv2's network is what torch's own transformer makes of the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.evaluation.dinov2 import VisionTransformer

WIDTH, HEADS, GRID = 32, 4, 5


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(WIDTH, 3, HEADS, GRID).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def by_torch(weights: dict[str, Tensor], images: Tensor, positions: Tensor) -> Tensor:
    """Its blocks by `nn.TransformerEncoderLayer`, which has no factors of its layers: they go into the weights."""
    stride = int((images.shape[-1] ** 2 / (positions.shape[1] - 1)) ** 0.5)
    patches = F.unfold(images, stride, stride=stride).transpose(1, 2)  # (n, patches, 3 × 14 × 14)
    tokens = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    tokens = torch.cat([weights["cls_token"].expand(len(images), -1, -1), tokens], dim=1) + positions
    for number in range(3):
        of = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"blocks.{number}.")}
        layer = nn.TransformerEncoderLayer(
            *(WIDTH, HEADS, 4 * WIDTH),
            dropout=0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        first, second = of["ls1.gamma"], of["ls2.gamma"]
        theirs = {
            "self_attn.in_proj_weight": of["attn.qkv.weight"],
            "self_attn.in_proj_bias": of["attn.qkv.bias"],
            "self_attn.out_proj.weight": first[:, None] * of["attn.proj.weight"],
            "self_attn.out_proj.bias": first * of["attn.proj.bias"],
            "linear1.weight": of["mlp.fc1.weight"],
            "linear1.bias": of["mlp.fc1.bias"],
            "linear2.weight": second[:, None] * of["mlp.fc2.weight"],
            "linear2.bias": second * of["mlp.fc2.bias"],
        }
        theirs |= {name: of[name] for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        layer.load_state_dict(theirs)
        tokens = layer.eval()(tokens)
    return F.layer_norm(tokens[:, 0], (WIDTH,), weights["norm.weight"], weights["norm.bias"], 1e-6)


@torch.no_grad()
def test_equal_to_torchs_transformer_at_the_size_of_its_training(network: VisionTransformer) -> None:
    images, weights = torch.randn(2, 3, 14 * GRID, 14 * GRID), network.state_dict()
    expected = by_torch(weights, images, weights["pos_embed"])
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_of_a_smaller_image_are_sampled_from_those_of_a_larger(network: VisionTransformer) -> None:
    side = 3
    images, weights = torch.randn(2, 3, 14 * side, 14 * side), network.state_dict()
    square = weights["pos_embed"][:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    # the centre of patch i in a grid that is a tenth of a patch wider, in [-1, 1] over the large one
    places = (torch.arange(side) + 0.5) / (side + 0.1) * 2 - 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)[None]
    sampled = F.grid_sample(square, grid, mode="bicubic", padding_mode="border", align_corners=False)
    positions = torch.cat([weights["pos_embed"][:, :1], sampled.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(network(images), by_torch(weights, images, positions), rtol=1e-4, atol=1e-4)


def test_it_has_the_parameters_of_the_published_file() -> None:
    with torch.device("meta"):
        weights = VisionTransformer().state_dict()
    assert len(weights) == 343
    assert sum(tensor.numel() for tensor in weights.values()) == 304_368_640
    assert weights["pos_embed"].shape == (1, 1 + 37 * 37, 1024)

"""The vision transformer of DINOv2 (Oquab et al., 2023), its parts named as in its published weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 14  # pixels
EPSILON = 1e-6  # of the normalisations


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) → the same shape."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """A hidden layer four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) → the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class LayerScale(nn.Module):
    """A factor for each number of a token (Touvron et al., 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) → the same shape."""
        return self.gamma * tokens


class Block(nn.Module):
    """Attention and a perceptron, each of what was normalised and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) → the same shape."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class PatchEmbed(nn.Module):
    """Each patch as a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) → (n, patches, width), row by row."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """ViT-L/14 without registers, whose class token is the feature of an image.

    Args:
        width: of a token.
        depth: blocks.
        heads: of each block's attention.
        grid: patches along a side of the images of its training, 518 pixels; positions in others are interpolated.
    """

    def __init__(self, width: int = 1024, depth: int = 24, heads: int = 16, grid: int = 37) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training alone
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Class tokens (n, width) of normalised square images (n, 3, h, h), whose side is a multiple of 14."""
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = self.blocks(tokens + self._positions(images.shape[-1] // PATCH))
        class_tokens: Tensor = self.norm(tokens[:, 0])
        return class_tokens

    def _positions(self, side: int) -> Tensor:
        if side == self.grid:
            return self.pos_embed
        of_class, of_patches = self.pos_embed.split([1, self.grid**2], dim=1)
        # a tenth of a patch more than there are, as at its training: their places differ a little for it
        scale = (side + 0.1) / self.grid
        square = of_patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([of_class, resized.flatten(2).transpose(1, 2)], dim=1)

"""The sizes that convolutional networks go through between an image and its smallest map."""

from __future__ import annotations

WIDEST = 512


def halvings(side: int) -> int:
    """How often a side can be halved while it is even and at least four remain: 28 → 14 → 7, 64 → … → 4."""
    count = 0
    while side % 2 == 0 and side // 2 >= 4:
        side //= 2
        count += 1
    return count


def smallest_side(side: int) -> int:
    """The side of the smallest map."""
    return side >> halvings(side)


def seen_side(side: int) -> int:
    """The side of what a place of the smallest map sees of the image, by convolutions k4 s2: 28 → 10, 64 → 46."""
    return int(3 * 2 ** halvings(side) - 2)


def widths(side: int, width: int) -> list[int]:
    """Channels after each halving, doubling from `width` as long as they are no more than 512."""
    return [min(width * 2**i, max(WIDEST, width)) for i in range(halvings(side))]

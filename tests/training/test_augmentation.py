from __future__ import annotations

import pytest
import torch

from atelier.ranks import Noise, Ranks
from atelier.training.augmentation import AUGMENTATIONS, augment, mirror


def noise(seed: int = 0) -> Noise:
    return Noise(seed, Ranks())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_changes_are_random_repeatable_and_passed_through_by_gradients(name: str) -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).requires_grad_()
    changed = augment(images, [AUGMENTATIONS[name]], noise(), "symmetric")
    assert changed.shape == images.shape
    assert torch.equal(changed, augment(images, [AUGMENTATIONS[name]], noise(), "symmetric"))
    assert not torch.equal(changed, augment(images, [AUGMENTATIONS[name]], noise(1), "symmetric"))
    changed.square().sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()  # of every image


def test_translation_moves_by_whole_pixels_and_brings_zeros_in() -> None:
    images = torch.zeros(400, 1, 16, 16)
    images[:, 0, 7, 9] = 1
    moved = augment(images, [AUGMENTATIONS["translation"]], noise(), "symmetric")
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = {(int(y) - 7, int(x) - 9) for y, x in moved[:, 0].nonzero()[:, 1:]}
    assert places == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}  # an eighth each way, all met
    corner = torch.zeros(400, 1, 16, 16)
    corner[:, 0, 0, 0] = 1
    assert set(augment(corner, [AUGMENTATIONS["translation"]], noise(), "symmetric").sum((1, 2, 3)).tolist()) == {
        0.0,
        1.0,
    }  # it may leave, not wrap


def test_cutout_clears_half_the_side_at_most() -> None:
    kept = augment(torch.ones(400, 2, 16, 16), [AUGMENTATIONS["cutout"]], noise(), "symmetric")
    cleared = (kept[:, 0] == 0).sum((1, 2))
    assert cleared.max() == 64
    assert cleared.min() >= 16  # its middle is within or at the edge
    assert torch.equal(kept[:, 0], kept[:, 1])


def test_colour_changes_are_the_papers_sizes() -> None:
    grey = torch.zeros(2000, 3, 4, 4)
    brightness = augment(grey, [AUGMENTATIONS["colour"]], noise(), "symmetric")[:, 0, 0, 0]
    assert -0.5 <= brightness.min() < -0.45
    assert 0.45 < brightness.max() <= 0.5


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_of_either_range_are_changed_alike(name: str) -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = augment(images, [AUGMENTATIONS[name]], noise(), "unit")
    torch.testing.assert_close(2 * changed - 1, augment(2 * images - 1, [AUGMENTATIONS[name]], noise(), "symmetric"))
    assert torch.equal(augment(images, [], noise(), "unit"), images)


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(8.0).expand(1000, 1, 8, 8)
    turned = mirror(images, noise())[:, 0, 0, 0] == 7
    assert turned.float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(mirror(images, noise())[~turned], images[~turned])

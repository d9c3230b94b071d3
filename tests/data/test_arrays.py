"""The validation split: chosen by what each image is."""

from __future__ import annotations

import hashlib

import numpy as np

from atelier.data.arrays import validation_places


def test_an_image_is_for_validation_by_its_content_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 4, 4, 3), np.uint8)
    held_out = validation_places(images, 0.1)
    assert 400 < held_out.sum() < 600
    order = np.random.default_rng(1).permutation(5000)
    assert (validation_places(images[order], 0.1) == held_out[order]).all(), "whatever their order"
    assert (validation_places(images[3000:], 0.1) == held_out[3000:]).all(), "whatever else there is"
    assert (validation_places(np.concatenate([images, images]), 0.1) == np.tile(held_out, 2)).all(), "with its copies"
    assert validation_places(images, 0.2)[held_out].all(), "a larger share holds the smaller"
    # as `prepare` leaves them, which takes those of the smallest sha256 for tests
    of_training = [image for image in images if hashlib.sha256(image.tobytes()).digest()[0] > 100]
    assert 200 < validation_places(np.stack(of_training), 0.1).sum() < 400

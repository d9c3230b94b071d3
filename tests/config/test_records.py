"""Records that are damaged, each in a way that a lenient reader would pass over."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from atelier.config.records import LIMIT_BYTES, ModelConfig, Registration
from atelier.errors import AtelierError
from atelier.models.recipe import GanRecipe

WHOLE = json.dumps({"format": 1, "name": "gan", "weights_sha256": "0" * 64, "report_sha256": "1" * 64})


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace('"name": "gan"', '"name": "gan", "name": "vae"'),
        WHOLE.replace('"name": "gan"', '"name": "gan", "name": "gan"'),
        WHOLE[:-1] + "}}",
        WHOLE + WHOLE,
        "\ufeff" + WHOLE,
        WHOLE.replace('"gan"', "NaN"),
        "[" * 100_000,
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gan.json"
    path.write_text(text)
    with pytest.raises(AtelierError, match=r"gan\.json: .*run 'atelier register gan' again") as raised:
        Registration.read(path, "atelier register gan")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_record_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "gan.json"
    with path.open("wb") as file:
        file.truncate(40 * LIMIT_BYTES)
    with pytest.raises(AtelierError, match="larger than 64 MB"):
        Registration.read(path, "atelier register gan")


def test_a_record_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gan.json"
    path.write_text(WHOLE)

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(
        AtelierError, match=r"gan\.json: cannot be read \(Permission denied\); mend that, or run 'atelier"
    ):
        Registration.read(path, "atelier register gan")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"pack": "\0"}, "recipe.pack: expected a whole number, found '\\x00'"),  # a GAN's alone
        ({"validation": {"shre": 2}}, "recipe.validation.shre: unknown key; did you mean 'share'?"),  # may be left out
        ({"validation": {"share": 2}}, "recipe.validation.share: expected a number < 1.0, found 2"),
        ({"stop": {"patience_kimg": "x"}}, "recipe.stop.patience_kimg: expected a number, found 'x'"),
    ],
)
def test_what_is_wrong_in_a_section_of_a_recipe_is_told(recipe: dict[str, Any], said: str) -> None:
    whole = GanRecipe(kimg=1, batch=20, latent=8, width=8, generator_lr=1e-3, discriminator_lr=1e-3).model_dump()
    sha256 = "0" * 64
    config = {
        "format": 1,
        "run": "gan",
        "dataset": "mnist",
        "model": "cgan",
        "recipe": whole | recipe,
        "noise": {"z": [8]},
        "data_range": "unit",
        "height": 28,
        "width": 28,
        "channels": 1,
        "class_names": [],
        "train_images_sha256": sha256,
        "train_labels_sha256": None,
        "versions": {},
        "device": "cpu",
        "world_size": 1,
        "precision": "fp32",
    }
    with pytest.raises(AtelierError) as raised:
        ModelConfig.parse(json.dumps(config), "config.json", "train again")
    assert said in str(raised.value)

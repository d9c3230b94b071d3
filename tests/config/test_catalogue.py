"""Data sets in the parameters: what they will be is known, and what cannot be is refused, before data are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.errors import InputError
from atelier.models import ImageShape
from own_pictures import write_params

FLAT = "{side: 32, channels: 3}"


def test_a_run_knows_the_shape_of_data_that_nobody_has_read(tmp_path: Path) -> None:
    path = write_params(tmp_path, "/nowhere", "{side: 64, channels: 3, classes: [cat, dog, owl], title: Pets}")
    run = load_params(path).run("run")
    assert run.shape == ImageShape(64, 64, 3, 3)
    assert run.info.title == "Pets"
    assert load_params(path, ["prepare.sets.own={side: 32, channels: 1}"]).run("run").shape == ImageShape(32, 32, 1, 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prepare.sets.own.sides=3"], "prepare.sets.own.sides: unknown key; did you mean 'side'"),
        (["prepare.sets.own={side: 32}"], "prepare.sets.own.channels: missing; add it"),
        (["prepare.sets.own.side=20"], "prepare.sets.own.side: expected a whole number >= 28, found 20"),
        (["prepare.sets.own.side=600"], "expected a whole number <= 512"),
        (["prepare.sets.own.channels=4"], "prepare.sets.own.channels: cannot be 4; valid: 1, 3"),
        (["prepare.sets.own.classes=[a, a]"], "a class is named twice"),
        (["prepare.sets.own.labels=a.csv"], "labels: needs classes"),
        (
            ["prepare.sets.own.labels=../a.csv"],
            "prepare.sets.own.labels: expected 'folders' or the name of a CSV",
        ),
        (
            ["prepare.sets.own.background=white"],
            "prepare.sets.own.background: expected a colour such as '#ffffff'",
        ),
        (["prepare.sets.own.split=first"], "'first' needs train_images and test_images"),
        (["prepare.sets.mnist.classes=[a, b]"], "'mnist' has its own classes"),
        (["prepare.sets.mnist.split=share"], "'mnist' has its own labels and split"),
        (
            ["prepare.sets.mnist.train_images=50"],
            "prepare.sets.mnist.train_images: 'mnist' has its own labels and split",
        ),
        (["prepare.sets.own.train_images=50"], "train_images: has no effect with split 'share'; set split: first"),
        (["prepare.sets.own.split=folders", "prepare.sets.own.test_share=0.3"], "no effect with split 'folders'"),
        (["prepare.sets.own.file_column=x"], "prepare.sets.own.file_column: has no effect without a CSV"),
        (["ingest.paths={}"], "ingest.paths.own: missing; add the folder or archive"),
        (["ingest.paths.ownn=/x"], "ingest.paths.ownn: unknown data set 'ownn'; did you mean 'own'"),
        (["datasets=[owm]"], "unknown data set 'owm'; did you mean 'own'"),
        (["evaluate.extractors=[classifier]"], "'classifier' needs labels and 'own' has none"),
        (["prepare.sets.own.side=30"], "needs an image side that is a multiple of 4"),
        (['prepare.sets={"../own": {side: 32, channels: 3}}'], "may hold letters, digits"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = write_params(tmp_path, "/nowhere", FLAT)
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        load_params(path, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.processes
def test_reading_parameters_imports_neither_torch_nor_pillow(tmp_path: Path) -> None:
    path = write_params(tmp_path, "/nowhere", FLAT)
    code = (
        "import sys, pathlib; from atelier.config import load_params; load_params(pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'PIL', 'numpy', 'boto3', 'kagglehub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)

"""The model of the user's own in the README, as it stands there."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atelier import models
from atelier.errors import AtelierError
from atelier.models import MODELS, ImageShape, build_networks
from atelier.models.contract import build_checked_networks
from atelier.ranks import Ranks
from atelier.training import build_method

README = Path(__file__).parents[2] / "README.md"
SHAPE = ImageShape(28, 28, 1, 0)


def code() -> tuple[str, str]:
    """The file and the entry, as they stand there."""
    _, section = README.read_text().split("## A model of your own\n")
    file, entry = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len((file + entry).splitlines()) < 30
    return file, entry


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its file, where it can be changed before it is used."""
    file, entry = code()
    path = tmp_path / "mine.py"
    path.write_text(file)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    for name, model in eval(f"{{{entry}}}", vars(models)).items():
        monkeypatch.setitem(MODELS, name, model)
    yield path
    sys.modules.pop("atelier.models.mine", None)


def test_it_passes_the_lint_of_the_project() -> None:
    file, entry = code()
    table = f"MODELS = {{\n{entry}}}\n"
    for text, rules in ((file, []), (table, ["--ignore", "D100,F821"])):  # the table's imports stand elsewhere
        for command in (["check", *rules], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "src/atelier/models/mine.py", "-"]
            assert subprocess.run(ruff, input=text, text=True, check=False, cwd=README.parent).returncode == 0


@pytest.mark.parametrize("shape", [ImageShape(28, 28, 1, 0), ImageShape(64, 64, 3, 0)], ids=str)
@pytest.mark.usefixtures("own_model")
def test_it_trains(shape: ImageShape) -> None:
    entry = MODELS["mine"]
    recipe = entry.recipe.model_copy(update={"width": 4, "batch": 8})
    networks = build_networks("mine", recipe, shape)
    method = build_method(entry, recipe, networks, 0, Ranks())
    figures = method.step(torch.rand(8, shape.channels, shape.height, shape.width) * 2 - 1, None)
    assert all(value.isfinite() for value in figures.values())
    images = method.sampling_network()(torch.randn(3, recipe.noise), None)
    assert images.shape == (3, shape.channels, shape.height, shape.width)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def discriminator", "def critic", r"models/mine\.py: has no function 'discriminator'"),
        (
            "side * side * width, 1)",
            "side * width, 1)",
            r"shapes cannot be multiplied.*, for 2 images of 28×28×1; change .*mine\.py$",
        ),
        ("Reshape(side)", "Reshape(sides)", r"name 'sides' is not defined, for .*; change .*mine\.py:13$"),
        (", nn.Flatten(0))", ")", r"its discriminator gives \(2, 1\) for 2 images of 28×28×1, it must be \(2,\)"),
        ("4, 2, 1), nn.Tanh", "4, 4, 0), nn.Tanh", r"its generator gives \(2, 1, 56, 56\) .* must be \(2, 1, 28, 28\)"),
        (
            ", nn.Tanh())",
            ")",
            r"its generator gives values from -.* to .*'symmetric' is \[-1, 1\]; end it in tanh: change",
        ),
        (
            "nn.Tanh()",
            "nn.Sigmoid()",
            r"values from .* end it in tanh, or set 'unit' in its entry of MODELS: change .*mine",
        ),
        ("from torch import nn\n", "import nothere\n", r"mine\.py: cannot be imported: ModuleNotFoundError: No module"),
        ("def generator(", "def generator((", r"src/atelier/models/mine\.py:10: cannot be imported: SyntaxError: "),
        (
            "shape.height // 4\n    first = nn.Linear",
            "[1][4]\n    first = nn.Linear",
            r": IndexError: .* change .*mine\.py:12$",
        ),
    ],
)
def test_a_mistake_in_it_is_told_before_anything_is_trained(own_model: Path, old: str, new: str, message: str) -> None:
    text = own_model.read_text()
    assert old in text
    own_model.write_text(text.replace(old, new))
    with pytest.raises(AtelierError, match=message):
        build_checked_networks("mine", MODELS["mine"].recipe, SHAPE)


SMALL = """
    network = nn.Sequential(nn.Linear(recipe.latent, 4), nn.Linear(4, 4), nn.Linear(4, 4),
        nn.Linear(4, shape.channels * shape.height * shape.width), nn.Tanh(),
        nn.Unflatten(1, (shape.channels, shape.height, shape.width)))
    {change}
    return Unconditional(network)
"""
CANNOT_BE_WRITTEN = {
    "one weight used twice": ("network[2].weight = network[1].weight", "share memory.*weight"),
    "a state that is no tensor": (
        "network[0].__class__ = type('L', (nn.Linear,), {'get_extra_state': lambda self: {}, "
        "'set_extra_state': lambda self, state: None})",
        "_extra_state` is invalid, expected torch.Tensor",
    ),
    "a buffer that is one number seen many times": (
        "network[0].register_buffer('wide', torch.zeros(1).expand(4))",
        'named "0.0.wide".*unsupported operation',
    ),
    "a buffer with a history": (
        "network[0].register_buffer('now', network[0].weight * 2)",
        "Only Tensors created explicitly by the user .*deepcopy",
    ),
}


@pytest.mark.parametrize("kind", CANNOT_BE_WRITTEN)
def test_networks_that_could_not_be_written_after_training_are_refused_before(own_model: Path, kind: str) -> None:
    change, message = CANNOT_BE_WRITTEN[kind]
    head, rest = own_model.read_text().split("def generator", 1)
    signature, _ = rest.split("\n", 1)
    discriminator = rest[rest.index("def discriminator") :]
    body = SMALL.format(change=change)
    own_model.write_text(f"import torch\n{head}def generator{signature}{body}\n\n{discriminator}")
    with pytest.raises(AtelierError, match=rf"its generator cannot be written and read again: .*{message}.*mine\.py$"):
        build_checked_networks("mine", MODELS["mine"].recipe, SHAPE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latent=64, ", "", r"GanRecipe: latent: Field required; mend it"),
        ("width=32", "width=0", r"GanRecipe: width: Input should be greater than or equal to 1; mend it"),
        ('source="', 'sauce="', r"Model: source: Field required; mend it"),
        ('"symmetric"', '"symetric"', r"Model: data_range: Input should be 'symmetric' or 'unit'; mend it"),
    ],
)
def test_a_mistake_in_the_table_is_one_line_of_every_command(old: str, new: str, message: str, tmp_path: Path) -> None:
    shutil.copytree(Path(models.__file__).parents[1], tmp_path / "atelier", symlinks=True)
    table = tmp_path / "atelier" / "models" / "__init__.py"
    entry = code()[1]
    assert old in entry
    text = table.read_text().replace("MODELS: dict[str, Model] = {\n", "MODELS: dict[str, Model] = {\n" + entry)
    number = text[: text.index('"mine"')].count("\n") + 1
    table.write_text(text.replace(entry, entry.replace(old, new, 1)))
    command = [sys.executable, "-m", "atelier", "compare"]
    (tmp_path / "params.yaml").write_text("{datasets: [mnist], runs: {a: {dataset: mnist, model: cgan}}}")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    place = re.fullmatch(rf"atelier: {table}:(\d+): {message}", line)
    assert place is not None, line
    assert number <= int(place[1]) <= number + entry.count("\n")


def test_a_file_that_is_not_there_is_named(own_model: Path) -> None:
    own_model.unlink()
    with pytest.raises(AtelierError, match=r"src/atelier/models/mine\.py: missing, and MODELS has an entry 'mine'"):
        build_checked_networks("mine", MODELS["mine"].recipe, SHAPE)


def test_a_generator_in_the_other_range_is_told(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_model.is_file()
    monkeypatch.setitem(MODELS, "mine", MODELS["mine"].model_copy(update={"data_range": "unit"}))
    with pytest.raises(
        AtelierError, match=r"its generator gives values from -1 to .* 'unit' is \[0, 1\]; end it in a sig"
    ):
        build_checked_networks("mine", MODELS["mine"].recipe, SHAPE)


def test_a_vae_of_images_below_zero_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MODELS["cvae-tutorial"]
    monkeypatch.setitem(MODELS, "cvae-tutorial", entry.model_copy(update={"data_range": "symmetric"}))
    with pytest.raises(AtelierError, match=r"a likelihood is of pixels in \[0, 1\]; set 'unit' in its entry of MODELS"):
        build_checked_networks("cvae-tutorial", entry.recipe, SHAPE)


@pytest.mark.parametrize("name", MODELS)
def test_the_projects_own_and_the_documents_keep_to_the_contract(name: str) -> None:
    entry = MODELS[name]
    for labels in (False, True):
        recipe = entry.recipe.model_copy(update={"labels": labels})
        networks = build_checked_networks(name, recipe, replace(entry.home, classes=entry.classes(recipe, 10)))
        assert networks.keys() == {"gan": {"generator", "discriminator"}, "vae": {"encoder", "decoder"}}[entry.method]


def test_the_check_leaves_networks_and_random_numbers_as_they_are() -> None:
    recipe, found = MODELS["cgan"].recipe, []
    for build in (build_networks, build_checked_networks):
        torch.manual_seed(0)
        networks = build("cgan", recipe, ImageShape(28, 28, 1, 10))
        assert all(module.training for network in networks.values() for module in network.modules())
        states = [value for network in networks.values() for value in network.state_dict().values()]
        found.append([*states, torch.rand(3)])
    assert all(torch.equal(plain, checked) for plain, checked in zip(*found, strict=True))

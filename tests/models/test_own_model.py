"""The model of the user's own in docs/models.md, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from atelier.errors import AtelierError
from atelier.models import MODELS, ImageShape, ModelCode, build_networks
from atelier.models.contract import build_checked_networks
from atelier.models.own import find_model
from atelier.ranks import Ranks
from atelier.training import build_method

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
SHAPE = ImageShape(28, 28, 1, 0)


def source() -> str:
    """The file, as it stands there."""
    section = DOCS.read_text().split("## A model of your own\n")[1].split("\n## ")[0]
    (file,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(file.splitlines()) < 40
    return str(file)


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """Its file in a workspace, where it can be changed before it is used."""
    path = tmp_path / "models" / "mine.py"
    path.parent.mkdir()
    path.write_text(source())
    return path


def mine(path: Path) -> ModelCode:
    """The model that is in the file."""
    code = find_model("mine", path.parents[1])
    assert code is not None
    return code


def built(path: Path, shape: ImageShape = SHAPE) -> dict[str, nn.Module]:
    """Its networks, looked at as a training does."""
    code = mine(path)
    return build_checked_networks(code, code.entry.recipe, shape)


def test_it_passes_the_lint_of_the_project() -> None:
    for command in (["check", "--ignore", "INP001"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "models/mine.py", "-"]
        assert subprocess.run(ruff, input=source(), text=True, check=False, cwd=DOCS.parents[1]).returncode == 0


@pytest.mark.parametrize("shape", [ImageShape(28, 28, 1, 0), ImageShape(64, 64, 3, 0)], ids=str)
def test_it_trains(own_model: Path, shape: ImageShape) -> None:
    code = mine(own_model)
    recipe = code.entry.recipe.model_copy(update={"width": 4, "batch": 8})
    networks = build_networks(code, recipe, shape)
    method = build_method(code.entry, recipe, networks, 0, Ranks())
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
        ("Reshape(side)", "Reshape(sides)", r"name 'sides' is not defined, for .*; change .*mine\.py:19$"),
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
            r"values from .* end it in tanh, or set 'unit' in its entry: change .*mine",
        ),
        (
            "from torch import nn\n",
            "import nothere\n",
            r"models/mine\.py:3: cannot be imported: ModuleNotFoundError: No module named 'nothere'; mend it$",
        ),
        ("def generator(", "def generator((", r"models/mine\.py:16: cannot be imported: SyntaxError: .*; mend it$"),
        (
            "shape.height // 4\n    first = nn.Linear",
            "[1][4]\n    first = nn.Linear",
            r": IndexError: .* change .*mine\.py:18$",
        ),
    ],
)
def test_a_mistake_in_it_is_told_before_anything_is_trained(own_model: Path, old: str, new: str, message: str) -> None:
    text = own_model.read_text()
    assert old in text
    own_model.write_text(text.replace(old, new))
    with pytest.raises(AtelierError, match=message):
        built(own_model)


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
        built(own_model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latent=64, ", "", r":9: GanRecipe: latent: Field required; mend it"),
        ("width=32", "width=0", r":9: GanRecipe: width: Input should be greater than or equal to 1; mend it"),
        ('source="', 'sauce="', r":8: Model: source: Field required; mend it"),
        ('"symmetric"', '"symetric"', r":8: Model: data_range: Input should be 'symmetric' or 'unit'; mend it"),
        ("Model(", "dict(", r":8: MODEL is dict, not Model\(\.\.\.\); mend it"),
        ("kimg=100", "kimg=hundred", r":9: cannot be imported: NameError: name 'hundred' is not defined; mend it"),
        ("MODEL = ", "MODELS = ", r": has no MODEL; add MODEL = Model\(recipe=\.\.\., .*\)"),
        ("MODEL = ", "raise SystemExit(MODEL)\nMODEL = ", r":8: cannot be imported: NameError: .*; mend it"),
        ("MODEL = ", "MODEL = exit() or ", r":8: cannot be imported: SystemExit: None; mend it"),
        ("def discriminator", "def critic", r": has no function 'discriminator'; add it"),
        ("def generator(", "def generator((", r":16: cannot be imported: SyntaxError: .*; mend it"),
        ("GanRecipe, I", "GanRezipe, I", r":5: cannot be imported: ImportError: cannot import name 'GanRezipe' .*"),
    ],
)
def test_a_mistake_in_it_is_one_line_of_every_command(own_model: Path, old: str, new: str, message: str) -> None:
    text = own_model.read_text()
    assert old in text
    own_model.write_text(text.replace(old, new, 1))
    (own_model.parents[1] / "params.yaml").write_text("{datasets: [mnist], runs: {a: {dataset: mnist, model: mine}}}")
    command = [sys.executable, "-m", "atelier", "plan"]
    done = subprocess.run(command, cwd=own_model.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(rf"atelier: models/mine\.py{message}", line), line


def test_a_generator_in_the_other_range_is_told(own_model: Path) -> None:
    own_model.write_text(own_model.read_text().replace('"symmetric"', '"unit"'))
    with pytest.raises(
        AtelierError, match=r"its generator gives values from -1 to .* 'unit' is \[0, 1\]; end it in a sig"
    ):
        built(own_model)


def test_a_vae_of_images_below_zero_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MODELS["cvae-tutorial"]
    monkeypatch.setitem(MODELS, "cvae-tutorial", entry.model_copy(update={"data_range": "symmetric"}))
    with pytest.raises(AtelierError, match=r"a likelihood is of pixels in \[0, 1\]; set 'unit' in its entry$"):
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

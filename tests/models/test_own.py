"""Where models of the user's own are found, and that each is alone in its workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.errors import InputError
from atelier.models import ImageShape, ModelCode, build_networks
from atelier.models.own import find_model, own_names
from small_models import DISTRIBUTION, MODEL, install, install_here, write_model, write_params

SHAPE = ImageShape(8, 8, 1, 0)


def find(root: Path, name: str = "mine") -> ModelCode:
    code = find_model(name, root)
    assert code is not None
    return code


def weight(code: ModelCode) -> float:
    """The first weight of the discriminator that a model builds: what its file says."""
    network = build_networks(code, code.entry.recipe, SHAPE)["discriminator"]
    return next(network.parameters()).flatten()[0].item()


def test_two_workspaces_in_one_process_do_not_see_each_other(tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    for number, root in enumerate(roots, 1):
        write_model(root, blocks=f"FILL = {number}.0\n")
        write_params(root)
    (roots[0] / "models" / "only.py").write_text(MODEL)
    path = list(sys.path)
    runs = [load_params(root / "params.yaml").run("run") for root in roots]
    assert [weight(run.code) for run in (*runs, *runs)] == [1, 2, 1, 2]
    assert find_model("only", roots[0]) is not None
    assert find_model("only", roots[1]) is None
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError):
        __import__("mine")


def test_what_was_edited_is_read_anew_in_the_same_second(tmp_path: Path) -> None:
    write_model(tmp_path, blocks="FILL = 1.0\n")
    code = find(tmp_path)
    for number in (1, 2, 3):
        (tmp_path / "models" / "blocks.py").write_text(f"FILL = {number}.0\n")
        assert weight(code) == number
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_workspace_is_the_root_or_the_folder_of_the_parameters(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "settings").mkdir()
    write_params(tmp_path).rename(tmp_path / "settings" / "p.yaml")
    command = [sys.executable, "-m", "atelier", "plan", "--root", str(tmp_path), "--params", "settings/p.yaml"]
    subprocess.run(command, check=True, cwd=tmp_path.parent)
    assert (tmp_path / "plan.json").is_file()
    with pytest.raises(InputError, match=r"p\.yaml: runs\.run\.model: unknown model 'mine'"):
        load_params(tmp_path / "settings" / "p.yaml")


def test_reading_parameters_runs_the_entry_and_no_more(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_params(tmp_path)
    text = (tmp_path / "models" / "mine.py").read_text()
    (tmp_path / "models" / "mine.py").write_text(f"{text}\n\nraise SystemExit('all of it was run')\n")
    look = "import sys, pathlib; from atelier.config import load_params; load_params(pathlib.Path('params.yaml'));"
    subprocess.run([sys.executable, "-c", look + "sys.exit('torch' in sys.modules)"], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("entry", "kimg"),
    [
        ("KIMG = 2\nMODEL = Model(recipe=GanRecipe(kimg=KIMG, **REST), **OTHER)", 2),
        ("def recipe():\n    return GanRecipe(kimg=3, **REST)\n\n\nMODEL = Model(recipe=recipe(), **OTHER)", 3),
        ("VALUES = {}\nVALUES['kimg'] = 4\nMODEL = Model(recipe=GanRecipe(**VALUES, **REST), **OTHER)", 4),
        ("from .blocks import KIMG\nMODEL = Model(recipe=GanRecipe(kimg=KIMG, **REST), **OTHER)", 5),
        ("if nn:\n    MODEL = Model(recipe=GanRecipe(kimg=6, **REST), **OTHER)", 6),
    ],
)
def test_an_entry_may_be_put_together(tmp_path: Path, entry: str, kimg: float) -> None:
    write_model(tmp_path, blocks="FILL = 1.0\nKIMG = 5\n")
    file = tmp_path / "models" / "mine.py"
    head, body = MODEL.split("MODEL = Model(", 1)
    rest = (
        "REST = {'batch': 2, 'latent': 2, 'width': 2, 'generator_lr': 1e-3, 'discriminator_lr': 1e-3}\n"
        "OTHER = {'source': 'mine', 'data_range': 'symmetric'}\n"
    )
    functions = body.partition(")\n\n\n")[2]
    file.write_text(f"{head}{rest}{entry}\n\n\n{functions}")
    code = find(tmp_path)
    assert code.entry.recipe.kimg == kimg
    assert weight(code) == 1


def test_a_recipe_of_a_class_of_its_own_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "models" / "mine.py"
    text = file.read_text().replace("recipe=GanRecipe(", "recipe=Mine(")
    file.write_text(text.replace("MODEL =", "class Mine(GanRecipe):\n    depth: int = 3\n\n\nMODEL ="))
    with pytest.raises(InputError, match=r"mine\.py:\d+: MODEL\.recipe: must be GanRecipe\(\.\.\.\) or VaeRecipe"):
        find_model("mine", tmp_path)


@pytest.mark.parametrize("name", ["cgan", "cvae_tutorial"])
def test_a_name_that_a_built_in_model_has_is_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name)
    write_params(tmp_path, name)
    with pytest.raises(InputError, match=rf"models/{name}\.py: '{name.replace('_', '-')}' is a built-in model; give"):
        load_params(tmp_path / "params.yaml")


def test_names_are_told_and_lead_nowhere_else(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "elsewhere.py").write_text(MODEL)
    write_params(tmp_path, "mime")
    with pytest.raises(InputError, match=r"unknown model 'mime'; did you mean 'mine'\?"):
        load_params(tmp_path / "params.yaml")
    assert list(own_names(tmp_path)) == ["mine"]  # not blocks.py
    assert find_model("../elsewhere", tmp_path) is None
    assert find_model("blocks", tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["blocks", "models.blocks"])
def test_a_file_beside_it_is_imported_relatively_and_that_is_said(tmp_path: Path, name: str) -> None:
    write_model(tmp_path)
    file = tmp_path / "models" / "mine.py"
    file.write_text(file.read_text().replace("from .blocks import", f"from {name} import"))
    code = find(tmp_path)
    with pytest.raises(InputError, match=r"mine\.py:4: .*; a file beside it is imported by 'from \.NAME import …'$"):
        build_networks(code, code.entry.recipe, SHAPE)


def test_a_mistake_in_a_file_beside_it_is_told_by_its_name(tmp_path: Path) -> None:
    write_model(tmp_path, blocks="FILL = (\n")
    code = find(tmp_path)
    with pytest.raises(InputError, match=r"models/blocks\.py:1: cannot be imported: SyntaxError: .*; mend it$"):
        build_networks(code, code.entry.recipe, SHAPE)


def test_a_model_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_here(tmp_path / "site", monkeypatch)
    code = find(tmp_path, "theirs")
    assert (code.module, code.requirement) == ("house_of_models.nets", DISTRIBUTION)
    assert weight(code) == 7
    write_model(tmp_path, "theirs")
    with pytest.raises(
        InputError, match=rf"'theirs': is in .*theirs\.py and in the installed '{DISTRIBUTION}'; rename"
    ):
        find_model("theirs", tmp_path)


def test_the_list_of_models_has_them(tmp_path: Path) -> None:
    write_model(tmp_path)
    site = install(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "atelier", "models", "--root", str(tmp_path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["mine", "theirs"]

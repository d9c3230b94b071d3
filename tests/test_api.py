"""The interface for notebooks and scripts, as docs/python.md shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atelier
from atelier.errors import InputError
from atelier.mark import read_mark
from atelier.registry.sample import sample

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def shown(judged_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the blocks of the page leave, run one after the other beside the workspace `work`."""
    folder = tmp_path_factory.mktemp("python")
    shutil.copytree(judged_workspace, folder / "work", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    names: dict[str, Any] = {"__name__": "page", "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_every_block_of_the_page_runs(shown: dict[str, Any]) -> None:
    assert [one["kimg"] for one in shown["figures"]] == [0.5, 1.0]
    assert {"generator_loss", "seconds", "images_per_second"} <= shown["figures"][0].keys()
    assert shown["report"].metrics["fd_classifier"].mean > 0
    assert repr(shown["model"]) == "<models/mnist-cgan: cgan on mnist, 1 kimg>"
    assert shown["threes"].images.shape == (4, 28, 28, 1)
    assert set(shown["threes"].labels) == {3}


def test_pictures_show_themselves_and_are_those_of_the_command(shown: dict[str, Any], tmp_path: Path) -> None:
    saved = shown["folder"] / "threes.png"
    assert saved.read_bytes() == shown["threes"]._repr_png_()
    mark = read_mark(saved)
    assert mark is not None
    assert (mark.run, mark.seed, mark.label) == ("mnist-cgan", 5, 3)
    out = sample("models/mnist-cgan", 4, 5, 3, tmp_path / "threes.npz", shown["folder"] / "work")
    np.testing.assert_array_equal(np.load(out)["images"], shown["threes"].images)
    ways = shown["model"].interpolate(8, n=2, label=7)
    assert ways.images.shape == (16, 28, 28, 1)
    np.testing.assert_array_equal(ways.images, shown["model"].interpolate(8, n=2, label=7).images)
    with pytest.raises(InputError, match=r"threes\.gif: must end in \.npz or \.png"):
        shown["threes"].save(tmp_path / "threes.gif")


def test_tables_show_themselves(shown: dict[str, Any]) -> None:
    work = shown["work"]
    assert re.search(r"^run +data set .*\nmnist-cgan +mnist +cgan", repr(work.runs))
    page = work.compare()._repr_html_()
    assert page.startswith("<table><thead><tr><th>metric</th><th>mnist-cgan</th><th>mnist-cvae</th></tr></thead>")
    assert "<td>fd_classifier</td>" in page


def test_what_a_callback_raises_ends_the_training_which_goes_on(shown: dict[str, Any]) -> None:
    class Enough(Exception):
        pass

    def stop(figures: dict[str, float]) -> None:
        raise Enough

    changed = {"runs.mnist-cgan.kimg": 1.5, "train.tick_kimg": 0.5, "train.checkpoint_seconds": 0.001}
    work = atelier.Workspace(shown["folder"] / "work", changed, say=(said := list[str]()).append)
    with pytest.raises(Enough):
        work.train("mnist-cgan", stop)
    model = work.train("mnist-cgan")
    assert model is not None
    assert any(line.startswith("going on from") for line in said)


def test_mistakes_are_one_line(shown: dict[str, Any], tmp_path: Path) -> None:
    work = shown["folder"] / "work"
    with pytest.raises(InputError, match=r"^--set runs\.mnist-cgan\.kimgs=1: |runs\.mnist-cgan\.kimgs: unknown key"):
        atelier.Workspace(work, {"runs.mnist-cgan.kimgs": 1})
    with pytest.raises(InputError, match=r"nowhere: no such folder; give root="):
        atelier.load("models/mnist-cgan", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"models/none: no such folder; give models:/NAME/VERSION"):
        atelier.load("models/none", work)
    with pytest.raises(AttributeError, match="nothere"):
        atelier.nothere  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'mlflow', 'numpy', 'pydantic'}"
    code = f"import sys, atelier; atelier.Workspace; print(sorted({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"

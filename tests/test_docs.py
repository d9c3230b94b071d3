"""The pages in docs/ say what their scripts made, and recipes stand there as they are trained."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from atelier.config import load_params
from atelier.files import read_json

CHECKOUT = Path(__file__).resolve().parents[1]
SYSTEMS = CHECKOUT / "benchmarks" / "systems.yaml"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of benchmarks/, imported as it is when it is run."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # which it would leave set
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{request.param}", CHECKOUT / f"benchmarks/{request.param}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["systems"], indirect=True)
def test_the_table_of_systems_is_of_what_was_judged(script: ModuleType) -> None:
    params = load_params(SYSTEMS)
    assert (CHECKOUT / "docs" / "systems.md").read_text() == script.table(params)
    for name in params.runs:
        row = read_json(script.KEPT / f"{name}.json")
        run = params.run(name)
        assert (row["dataset"], row["model"], row["kimg"]) == (run.dataset, run.model, run.recipe.kimg)
        assert (script.KEPT / f"{name}.png").is_file()


@pytest.mark.parametrize("script", ["models"], indirect=True)
def test_the_table_of_equal_time_is_of_what_was_measured(script: ModuleType) -> None:
    results = read_json(script.KEPT / "results.json")
    assert (CHECKOUT / "docs" / "benchmarks.md").read_text() == script.page(results, script.KEPT)


def test_the_recipes_for_few_pictures_are_those_of_the_table() -> None:
    _, section = (CHECKOUT / "docs" / "models.md").read_text().split("## Few pictures\n")
    (shown,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    yaml = YAML(typ="safe", pure=True)
    trained = yaml.load(SYSTEMS)["runs"]
    recipes = yaml.load(shown)["runs"]
    assert recipes == {name: trained[name] for name in recipes}


def test_the_published_protocol_is_what_its_command_runs() -> None:
    docs = (CHECKOUT / "docs" / "evaluation.md").read_text()
    (command,) = re.findall(r"^atelier init fid && cp (\S+) fid/params\.yaml && atelier repro --root fid$", docs, re.M)
    params = load_params(CHECKOUT / command)
    settings = params.evaluate
    assert {(run.dataset, run.model) for run in map(params.run, params.runs)} == {
        (dataset, model) for dataset in ("mnist", "fashion-mnist") for model in ("cgan", "cvae")
    }
    assert (settings.extractors, settings.samples) == (["inception"], 10_000)
    assert params.promote.better == ["fid"]


def test_the_published_likelihood_is_what_its_commands_train() -> None:
    docs = (CHECKOUT / "docs" / "evaluation.md").read_text()
    (file,) = set(re.findall(r"^set -- \S+ --params (\S+) --root likelihood$", docs, re.M))
    params = load_params(CHECKOUT / file)
    run = params.run("bound")
    assert (run.model, run.dataset) == ("dense-vae", "mnist")
    assert f"After {run.recipe.kimg / 60:g} with batches of {run.recipe.batch}, " in docs
    assert params.evaluate.likelihood_samples == 5000

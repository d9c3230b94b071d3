"""The pipeline by Kubeflow's local runner, in processes of its own. That it makes the bytes of `dvc repro` is proven
where a `dvc repro` is at hand, in integration/test_pipeline.py.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from registries import report

from atelier.config import load_params
from atelier.files import read_json
from atelier.pipelines.local import run_local
from atelier.search import open_study
from own_pictures import write_pictures
from small_models import SMALL_STAGES

pytestmark = pytest.mark.processes


def pipeline(root: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atelier", "pipeline", "run", "--root", str(root), *options]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


PARAMS = """
datasets: [mnist, fashion-mnist]
runs:
  a: {dataset: mnist, model: cgan}
  b: {dataset: fashion-mnist, model: cgan}
  c: {dataset: mnist, model: cvae}
"""
# takes the place of the stages: each writes what there was in its workspace, and what its page shows
STAGES = """
import sys
from pathlib import Path
from atelier.files import read_json, write_json
_, stage, *name, _, root = sys.argv
root, name = Path(root), "".join(name)
made = [*root.rglob("made.json"), *root.glob("registry/*")]
runs = list(read_json(root / "params.yaml")["runs"])
content = {"by": f"{stage} {name}".strip(), "of": sorted({read_json(path)["by"] for path in made}), "runs": runs}
places = {
    "ingest": ["data/raw/{}/"],
    "prepare": ["data/prepared/{}/"],
    "reference": ["reference/{}/"],
    "train": ["models/{}/", "runs/{}/"],
    "evaluate": ["reports/{}/"],
    "register": ["registry/{}.json"],
    "compare": ["reports/index.html", "reports/summary.json", "reports/curves.csv"],
}
for place in places[stage]:
    target = root / place.format(name)
    if not place.endswith("/"):
        write_json(target, content)
        continue
    write_json(target / "made.json", content)
    for page in ("card.json", "contact-sheet.png", "grid.png", "training.gif"):
        write_json(target / page, {})
    write_json(target / "report.json", REPORT)
"""


def test_each_stage_finds_what_is_of_its_own_data_set_and_run(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "stub" / "atelier"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n")
    judged = json.dumps(report(1.0).model_dump(mode="json"))
    (stub / "__main__.py").write_text(f"import json\nREPORT = json.loads({judged!r})\n{STAGES}")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stub.parent), environment["PYTHONPATH"]]))
    printed, said = print, list[str]()
    out = run_local(load_params(tmp_path / "params.yaml"), tmp_path, tmp_path / "out", None, said.append)
    assert {"ingest: ingest mnist", "train: train a", "train: train b", "compare: compare"} <= set(said)

    def inputs(place: str) -> list[str]:
        return list(read_json(out / place)["of"])

    for dataset in ("mnist", "fashion-mnist"):
        assert inputs(f"data/prepared/{dataset}/made.json") == [f"ingest {dataset}"]
        assert inputs(f"reference/{dataset}/made.json") == [f"prepare {dataset}"]
    runs = {"a": "mnist", "b": "fashion-mnist", "c": "mnist"}
    for run, dataset in runs.items():
        assert inputs(f"models/{run}/made.json") == [f"prepare {dataset}"]
        assert inputs(f"reports/{run}/made.json") == [f"prepare {dataset}", f"reference {dataset}", f"train {run}"]
        assert inputs(f"registry/{run}.json") == [f"evaluate {run}", f"train {run}"]
    assert inputs("reports/summary.json") == [
        f"{stage} {run}" for stage in ("evaluate", "register", "train") for run in runs
    ]
    assert read_json(out / "reports" / "summary.json")["runs"] == list(runs)
    assert print is printed


def test_a_failing_stage_fails_the_run_and_the_runs_end(small_mnist: Path, environment: dict[str, str]) -> None:
    out = small_mnist / "out"
    result = pipeline(
        small_mnist, environment, "--local", "--out", str(out), "--set", "ingest.paths={mnist: ./not-there}"
    )
    assert result.returncode == 1, result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("atelier: Pipeline 'atelier-training' finished with status FAILURE")
    assert "'ingest'" in last
    assert f"{small_mnist / 'not-there'}" in result.stderr  # what the stage said
    assert "Traceback" not in result.stdout + result.stderr
    assert "MLflow runs closed: 0" in result.stderr  # whatever happens
    assert result.stdout == ""
    assert not re.search(r"KFP|INFO|----|\x1b", result.stderr), "lines of kfp's own"
    assert not (out / "reports").exists()


def test_parameters_are_refused_before_a_stage_runs(small_mnist: Path, environment: dict[str, str]) -> None:
    result = pipeline(small_mnist, environment, "--local", "--set", "runs.mnist-cgan.model=cgam")
    assert result.returncode == 2
    assert "did you mean 'cgan'?" in result.stderr
    assert not (small_mnist / "kubeflow").exists()


def test_a_data_set_without_a_run_is_told(small_mnist: Path, environment: dict[str, str]) -> None:
    result = pipeline(small_mnist, environment, "--local", "--set", "datasets=[mnist, pokemon]")
    assert result.returncode == 2
    assert "datasets: 'pokemon' has no run" in result.stderr


def test_outputs_that_are_there_are_kept(small_mnist: Path, environment: dict[str, str]) -> None:
    out = small_mnist / "out"
    out.mkdir()
    (out / "file").touch()
    result = pipeline(small_mnist, environment, "--local", "--out", str(out))
    assert result.returncode == 2
    assert "not empty" in result.stderr
    assert [path.name for path in out.iterdir()] == ["file"]


SEARCH = """
datasets: [own]
runs:
  gan:
    {dataset: own, model: cgan, batch: 16, width: 4, latent: 4,
    validation: {share: 0.5, samples: 100, every_kimg: 0.1, classifier_kimg: 0.1}}
ingest: {paths: {own: pictures}}
search: {lr: {run: gan, keys: {width: [4, 8], generator_lr: {log: [1e-4, 1.e-2]}}, trials: 2, kimg: 0.2}}
"""


def test_a_search_has_the_trials_and_the_winner_of_atelier_search(tmp_path: Path, environment: dict[str, str]) -> None:
    write_pictures(tmp_path / "pictures", 80)
    (tmp_path / "params.yaml").write_text(SEARCH + SMALL_STAGES)
    assert pipeline(tmp_path, environment, "--local", "--search", "lx").returncode == 2
    ran = pipeline(tmp_path, environment, "--local", "--search", "lr", "--out", "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    (tmp_path / "data").symlink_to("out/data")
    here = [sys.executable, "-m", "atelier", "search", "lr"]
    subprocess.run(here, env=environment, cwd=tmp_path, capture_output=True, check=True)
    params = load_params(tmp_path / "params.yaml")
    ours, theirs = (open_study("lr", params, root) for root in (tmp_path, tmp_path / "out"))
    tried = [
        sorted((trial.user_attrs["trial"], trial.params, trial.value) for trial in study.trials)
        for study in (ours, theirs)
    ]
    assert len(tried[0]) == 2
    assert tried[0] == tried[1]
    (page,) = (tmp_path / "out").rglob("page")
    assert f"best: {html.escape(str(ours.best_params))}" in page.read_text()

"""`dvc repro` as a user runs it, in a checkout of its own, with budgets of seconds."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from atelier.files import folder_digest, read_json
from atelier.init import render
from atelier.own_code import RECIPE
from browser import Browser
from own_pictures import write_params, write_pictures
from small_models import LOSS, write_loss

PROJECT = Path(__file__).parents[2]
OUTS = ("data", "reference", "models", "reports")

pytestmark = pytest.mark.processes


def make_checkout(target: Path, environment: dict[str, str], mnist_files: Path, only_run: str = "") -> Path:
    """This project's files and a loss of one's own as a git repository: small budgets, all runs or one of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((PROJECT / name).read_bytes())
    text = (target / "params.yaml").read_text()
    for key, value in {
        "kimg": "3, width: 8, batch: 50",
        "paths": f"{{mnist: '{mnist_files}'}}",
        "classifier_kimg": "10",
        "samples": "500",
        "draws": "2",
        "manifold_samples": "500",
        "memorisation_samples": "50",
        "accuracy_kimg": "2",
        "likelihood_images": "50",
        "likelihood_samples": "5",
        "tick_kimg": "0.5",
        "pictures": "3",
        "checkpoint_seconds": "0.2",
    }.items():
        text, count = re.subn(rf"\b{key}: (\{{\}}|[\d.]+)", f"{key}: {value}", text)
        assert count, key
    text = text.replace("model: cgan,", "model: cgan, loss: softer,")
    write_loss(target)
    if only_run:
        text = re.sub(rf"^  (?!{only_run}:)\S+: \{{dataset: .*\n", "", text, flags=re.MULTILINE)
    (target / "params.yaml").write_text(text)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=target, env=environment, check=True)
    return target


def run(checkout: Path, environment: dict[str, str], *command: str) -> str:
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\S+)'", output)


def version(checkout: Path, run_name: str) -> dict[str, Any]:
    """What the model that lies there is registered as."""
    registered = read_json(checkout / "registry" / f"{run_name}.json")
    known: dict[str, Any] = read_json(checkout / "runs" / run_name / registered["weights_sha256"][:16] / "version.json")
    assert registered.items() <= known.items()
    return known


def lock(checkout: Path) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load((checkout / "dvc.lock").read_text())["stages"]
    return stages


def state(checkout: Path) -> dict[str, str]:
    folders = [path for name in OUTS for path in (checkout / name).glob("*") if path.is_dir()]
    folders += [path for path in (checkout / "data").glob("*/*") if path.is_dir()]
    return {path.relative_to(checkout).as_posix(): folder_digest(path) for path in folders}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], mnist_files: Path) -> Path:
    folder = make_checkout(tmp_path_factory.mktemp("checkout"), environment, mnist_files)
    output = run(folder, environment, "dvc", "repro")
    assert len(stages_run(output)) == 11
    assert "fd_classifier" in output
    assert "report: reports/index.html" in output
    run(folder, environment, "git", "add", "-A")
    run(folder, environment, "git", "commit", "-qm", "first results")
    return folder


def test_repro_again_does_nothing(checkout: Path, environment: dict[str, str]) -> None:
    output = run(checkout, environment, "dvc", "repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output


def test_everything_the_pipeline_makes_is_ignored_by_git(checkout: Path, environment: dict[str, str]) -> None:
    assert run(checkout, environment, "git", "status", "--porcelain") == ""
    for name in ("data", "reference", "models/mnist-cgan", "reports", "runs", "registry", "mlflow.db"):
        assert (checkout / name).exists()
        assert run(checkout, environment, "git", "check-ignore", name).strip() == name


def test_one_training_parameter_reruns_that_model_and_nothing_else(checkout: Path, environment: dict[str, str]) -> None:
    before = state(checkout)
    output = run(checkout, environment, "dvc", "exp", "run", "-S", "runs.mnist-cvae.kimg=4")
    assert stages_run(output) == ["plan", "train@mnist-cvae", "evaluate@mnist-cvae", "register@mnist-cvae", "compare"]
    assert "runs.mnist-cvae.kimg" in run(checkout, environment, "dvc", "params", "diff")
    assert re.search(r" fd_classifier +\d", run(checkout, environment, "dvc", "metrics", "diff"))
    assert version(checkout, "mnist-cvae")["version"] == 2
    # and back: the same parameters give the same bytes
    run(checkout, environment, "git", "checkout", "-q", "params.yaml", "dvc.lock")
    run(checkout, environment, "dvc", "repro")
    assert state(checkout) == before
    assert version(checkout, "mnist-cvae")["version"] == 1
    assert run(checkout, environment, "git", "status", "--porcelain") == ""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_plots_are_complete_without_a_network(checkout: Path, environment: dict[str, str], wide: Browser) -> None:
    run(checkout, environment, "dvc", "plots", "show")
    page = (checkout / "dvc_plots" / "index.html").as_uri()
    wide.faults.clear()
    wide.requests.clear()
    wide.open(page)
    wide.wait("document.querySelectorAll('.vega-embed canvas').length === 5")
    wide.wait("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert wide.faults == []
    assert {request for request in wide.requests if not request.startswith(("file:", "data:", "blob:"))} == set()
    charts = {line["chart"] for line in csv.DictReader((checkout / "reports/curves.csv").open())}
    assert {"mnist: kid_classifier", "mnist: generator_loss", "mnist: elbo"} <= charts
    columns = run(checkout, environment, "dvc", "exp", "show", "--csv").splitlines()[0].split(",")
    assert 0 < len([column for column in columns if column.startswith("reports/mnist-cgan/")]) < 30, columns


def test_a_run_that_is_taken_out_is_gone_from_the_report(checkout: Path, environment: dict[str, str]) -> None:
    before, text = state(checkout), (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(re.sub(r"^  mnist-cvae:.*\n", "", text, flags=re.MULTILINE))
    assert stages_run(run(checkout, environment, "dvc", "repro")) == ["plan", "compare"]
    assert list(read_json(checkout / "reports" / "summary.json")) == ["mnist-cgan"]
    assert "mnist-cvae" not in (checkout / "reports" / "index.html").read_text()
    assert [path.name for path in (checkout / "registry").iterdir()] == ["mnist-cgan.json"]
    # and back: what was made of it is still there
    run(checkout, environment, "git", "checkout", "-q", "params.yaml", "dvc.lock")
    assert "train" not in " ".join(stages_run(run(checkout, environment, "dvc", "repro")))
    assert state(checkout) == before
    assert run(checkout, environment, "git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        # all parameters: tests/test_plan.py; these, as DVC takes them
        ("timeout_seconds", "21", []),
        ("likelihood_images", "40", ["evaluate@mnist-cgan", "evaluate@mnist-cvae"]),
    ],
)
def test_a_parameter_makes_those_stages_stale_that_read_it(
    checkout: Path, environment: dict[str, str], key: str, value: str, stages: list[str]
) -> None:
    text, count = re.subn(rf"\b{key}: [^ \n]+.*", f"{key}: {value}", (checkout / "params.yaml").read_text())
    assert count == 1
    (checkout / "params.yaml").write_text(text)
    run(checkout, environment, "dvc", "repro", "plan")
    assert sorted(json.loads(run(checkout, environment, "dvc", "status", "--json"))) == stages
    run(checkout, environment, "git", "checkout", "-q", "params.yaml", "dvc.lock")
    run(checkout, environment, "dvc", "checkout", "--quiet")


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("registry/lineage.py", "WEIGHTS_TAG =", "# a comment\nWEIGHTS_TAG =", []),
        ("evaluation/site/page.html.j2", "<body>", "<body >", ["compare"]),
        ("models/mine.py", "", "def generator():\n    pass\n", []),
    ],
)
def test_changed_code_runs_the_stages_again_that_execute_it(
    checkout: Path, environment: dict[str, str], file: str, old: str, new: str, stages: list[str]
) -> None:
    path = checkout / "src" / "atelier" / file
    path.write_text(path.read_text().replace(old, new) if path.is_file() else new)
    output = run(checkout, environment | {"PYTHONPATH": str(checkout / "src")}, "dvc", "repro")
    assert stages_run(output) == ["plan", *stages]
    run(checkout, environment, "git", "clean", "-fdq", "src")
    run(checkout, environment, "git", "checkout", "-q", ".")
    run(checkout, environment, "dvc", "checkout", "--quiet")


def test_files_that_an_editor_or_file_manager_leaves_run_nothing(checkout: Path, environment: dict[str, str]) -> None:
    litter = [
        *("data/prepared/mnist/.DS_Store", "models/mnist-cgan/Thumbs.db", "reports/mnist-cvae/curves/kid.csv~"),
        *("src/atelier/data/prepare.py~", "src/atelier/data/.prepare.py.swp", "src/atelier/.#files.py"),
    ]
    for name in litter:
        (checkout / name).touch()
    assert run(checkout, environment, "dvc", "status") == "Data and pipelines are up to date.\n"
    assert "as the card says" in run(checkout, environment, "atelier", "data", "check", "mnist")
    for name in litter:
        (checkout / name).unlink()


def test_a_workspace_without_the_code(environment: dict[str, str], tmp_path: Path) -> None:
    """There atelier is installed: DVC cannot watch its files, so `plan` looks each time."""
    (tmp_path / "dvc.yaml").write_text(render("dvc.yaml.j2", {"has_code": False}))
    write_params(tmp_path, write_pictures(tmp_path / "pictures"), "{side: 32, channels: 3, classes: [cat, dog]}")
    run(tmp_path, environment, "dvc", "init", "--no-scm", "--quiet")
    assert stages_run(run(tmp_path, environment, "dvc", "repro", "prepare@own")) == [
        "plan",
        "ingest@own",
        "prepare@own",
    ]
    assert stages_run(run(tmp_path, environment, "dvc", "repro", "prepare@own")) == ["plan"]
    changes = json.loads(run(tmp_path, environment, "dvc", "status", "--json", "plan", "ingest@own", "prepare@own"))
    assert changes == {"plan": ["always changed"]}


def test_kubeflow_here_gives_the_same_bytes(checkout: Path, environment: dict[str, str]) -> None:
    command = "atelier pipeline run --local --out kubeflow --promote"
    output = run(checkout, environment, "sh", "-c", f"{command} 2>&1")
    assert "models:/mnist-cgan/1: models:/mnist-cgan/1 is not promoted: fd_classifier" in output
    assert "MLflow runs closed: 0" in output
    theirs = checkout / "kubeflow"
    assert state(theirs) == state(checkout)
    # the loss of one's own went along
    assert (theirs / "models" / "mnist-cgan" / RECIPE / "losses" / "softer.py").read_text() == LOSS
    registered = [f"registry/{name}.json" for name in ("mnist-cgan", "mnist-cvae")]
    for name in ("reports/summary.json", "reports/index.html", "reports/curves.csv", *registered):
        assert (theirs / name).read_bytes() == (checkout / name).read_bytes(), name
    for name in ("mnist-cgan", "mnist-cvae"):
        assert version(theirs, name)["version"] == 1
        assert f"models:/{name}/1" in output
    runs = MlflowClient(f"sqlite:///{theirs / 'mlflow.db'}").search_runs(["1"])
    commit = run(checkout, environment, "git", "rev-parse", "HEAD").strip()
    assert {one.data.tags["mlflow.source.git.commit"] for one in runs} == {commit}
    # the folder is a workspace: what was registered is there to be used
    run(theirs, environment, "atelier", "sample", "models:/mnist-cvae/1", "--n", "4", "--out", "digits.png")
    shutil.rmtree(theirs)


def test_killed_in_every_stage_it_ends_in_the_same_state_as_without(
    checkout: Path,
    environment: dict[str, str],
    mnist_files: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    killed = make_checkout(tmp_path, environment, mnist_files, only_run="mnist-cgan")
    killer = tmp_path_factory.mktemp("killer")
    for stage, at in (
        ("ingest", "data/raw/mnist"),
        ("prepare", "partial/train-images.npy"),
        ("prepare", "data/prepared/mnist"),
        ("reference", "reference/mnist"),
        ("train", "000000003000.checkpoint"),
        ("train", "models/mnist-cgan"),
        ("evaluate", "reports/mnist-cgan"),
        ("register", "/version.json"),
        ("compare", "reports/index.html"),
    ):
        kill_9(killed, environment, stage, at, killer)
        assert not missing_parts(killed), "something half-written is visible"
    run(killed, environment, "dvc", "repro")
    of_other_runs = {f"{name}/mnist-cvae" for name in OUTS}
    assert state(killed) == {name: digest for name, digest in state(checkout).items() if name not in of_other_runs}
    # the killed registration left no second version
    assert version(killed, "mnist-cgan")["version"] == 1
    # dvc.lock says what was made, not when or where
    ours, theirs = lock(checkout), lock(killed)
    assert {name: ours[name] for name in theirs.keys() - {"plan", "compare"}} == {
        name: theirs[name] for name in theirs.keys() - {"plan", "compare"}
    }


# in every Python process that DVC starts: that of KILLED_STAGE ends, with its group, before a rename to KILLED_AT
KILLER = """
import os, signal, sys
if os.environ["KILLED_STAGE"] in sys.orig_argv:
    from killing import kill_at
    kill_at(0, signal.SIGKILL, "/nothing", -os.getpgid(0), os.environ["KILLED_AT"])
"""


def kill_9(checkout: Path, environment: dict[str, str], stage: str, at: str, killer: Path) -> None:
    """Run `dvc repro` until `stage` is about to put `at` in its place, where it is killed with all that DVC started."""
    (killer / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join([str(killer), str(PROJECT / "tests"), *filter(None, [environment.get("PYTHONPATH")])])
    told = environment | {"PYTHONPATH": path, "KILLED_STAGE": stage, "KILLED_AT": at}
    ended = subprocess.run(
        ["dvc", "repro"], cwd=checkout, env=told, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


def missing_parts(checkout: Path) -> list[str]:
    """Folders that are there although a part of them is not."""
    complete = {
        "data/raw/mnist": 4,
        "data/prepared/mnist": 6,
        "reference/mnist": 3,
        "models/mnist-cgan": 6,
        "models/mnist-cvae": 6,
        "reports/mnist-cgan": 9,
        "reports/mnist-cvae": 9,
    }
    return [
        name
        for name, count in complete.items()
        if (checkout / name).exists() and len([p for p in (checkout / name).iterdir() if p.name[0] != "."]) != count
    ]

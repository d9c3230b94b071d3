"""`dvc repro` as a user runs it, in a checkout of its own, with budgets of seconds."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from atelier.files import folder_digest, read_json

PROJECT = Path(__file__).parents[2]
OUTS = ("data", "reference", "models", "reports")

pytestmark = pytest.mark.processes


def make_checkout(target: Path, environment: dict[str, str], mnist_files: Path, only_run: str = "") -> Path:
    """This project's files as a git repository, with small budgets and all runs, or one of them."""
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


def state(checkout: Path) -> dict[str, str]:
    folders = [path for name in OUTS for path in (checkout / name).glob("*") if path.is_dir()]
    folders += [path for path in (checkout / "data").glob("*/*") if path.is_dir()]
    return {path.relative_to(checkout).as_posix(): folder_digest(path) for path in folders}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], mnist_files: Path) -> Path:
    folder = make_checkout(tmp_path_factory.mktemp("checkout"), environment, mnist_files)
    output = run(folder, environment, "dvc", "repro")
    assert len(stages_run(output)) == 10
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
    for name in (*OUTS, "runs", "registry", "mlflow.db"):
        assert (checkout / name).exists()
        assert run(checkout, environment, "git", "check-ignore", name).strip() == name


def test_one_training_parameter_reruns_that_model_and_nothing_else(checkout: Path, environment: dict[str, str]) -> None:
    before = state(checkout)
    output = run(checkout, environment, "dvc", "exp", "run", "-S", "runs.mnist-cvae.kimg=4")
    assert stages_run(output) == ["train@mnist-cvae", "evaluate@mnist-cvae", "register@mnist-cvae", "compare"]
    assert "runs.mnist-cvae.kimg" in run(checkout, environment, "dvc", "params", "diff")
    assert "fd_classifier.mean" in run(checkout, environment, "dvc", "metrics", "diff")
    plots = run(checkout, environment, "dvc", "plots", "show")
    assert (checkout / "dvc_plots" / "index.html").is_file(), plots
    assert read_json(checkout / "registry" / "mnist-cvae.json")["version"] == 2
    # and back: the same parameters give the same bytes
    run(checkout, environment, "git", "checkout", "-q", "params.yaml", "dvc.lock")
    run(checkout, environment, "dvc", "repro")
    assert state(checkout) == before


def test_kubeflow_here_gives_the_same_bytes(checkout: Path, environment: dict[str, str]) -> None:
    output = run(checkout, environment, "atelier", "pipeline", "run", "--local", "--out", "kubeflow")
    assert "MLflow runs closed: 0" in output
    theirs = checkout / "kubeflow"
    assert state(theirs) == state(checkout)
    assert (theirs / "reports" / "summary.json").read_bytes() == (checkout / "reports" / "summary.json").read_bytes()
    for name in ("mnist-cgan", "mnist-cvae"):
        version, other = (read_json(root / "registry" / f"{name}.json") for root in (checkout, theirs))
        assert version | {"run_id": None} == other | {"run_id": None}
    # the folder is a workspace: what was registered is there to be used
    run(theirs, environment, "atelier", "sample", "models:/mnist-cvae/1", "--n", "4", "--out", "digits.png")
    shutil.rmtree(theirs)


def test_killed_in_every_stage_it_ends_in_the_same_state_as_without(
    checkout: Path, environment: dict[str, str], mnist_files: Path, tmp_path: Path
) -> None:
    killed = make_checkout(tmp_path, environment, mnist_files, only_run="mnist-cgan")
    seconds_into_stage = {
        "ingest": 0.3,
        "prepare": 0.3,
        "reference": 4,
        "train": 6,
        "evaluate": 4,
        "register": 8,
        "compare": 0.5,
    }
    for stage, delay in seconds_into_stage.items():
        kill_9(killed, environment, stage, delay)
        assert not missing_parts(killed), "something half-written is visible"
    run(killed, environment, "dvc", "repro")
    of_other_runs = {f"{name}/mnist-cvae" for name in OUTS}
    assert state(killed) == {name: digest for name, digest in state(checkout).items() if name not in of_other_runs}
    # the killed registration left no second version
    assert read_json(killed / "registry" / "mnist-cgan.json")["version"] == 1


def kill_9(checkout: Path, environment: dict[str, str], stage: str, delay: float) -> None:
    """Start `dvc repro` and kill -9 it with all it started, `delay` seconds after `stage` began."""
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    dvc = psutil.Process(process.pid)
    deadline = time.monotonic() + 300
    while not any(stage in arguments_of(child) for child in children_of(dvc)):
        assert process.poll() is None, f"dvc ended before {stage}"
        assert time.monotonic() < deadline, f"{stage} never started"
        time.sleep(0.02)
    time.sleep(delay)
    victims = [child for child in children_of(dvc) if stage in arguments_of(child)]
    assert victims, f"{stage} had ended before it was killed"
    for victim in [dvc, *children_of(dvc)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()
    psutil.wait_procs(victims, timeout=10)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return []


def arguments_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def missing_parts(checkout: Path) -> list[str]:
    """Folders that are there although a part of them is not."""
    complete = {
        "data/raw/mnist": 4,
        "data/prepared/mnist": 6,
        "reference/mnist": 3,
        "models/mnist-cgan": 4,
        "models/mnist-cvae": 5,
        "reports/mnist-cgan": 7,
        "reports/mnist-cvae": 7,
    }
    return [
        name
        for name, count in complete.items()
        if (checkout / name).exists() and len([p for p in (checkout / name).iterdir() if p.name[0] != "."]) != count
    ]

"""The pipeline by Kubeflow's local runner, in processes of its own. That it makes the bytes of `dvc repro` is proven
where a `dvc repro` is at hand, in integration/test_pipeline.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def pipeline(root: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atelier", "pipeline", "run", "--root", str(root), *options]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


def test_a_failing_stage_fails_the_run_and_the_runs_end(small_mnist: Path, environment: dict[str, str]) -> None:
    out = small_mnist / "out"
    result = pipeline(
        small_mnist, environment, "--local", "--out", str(out), "--set", "ingest.paths={mnist: ./not-there}"
    )
    assert result.returncode == 1, result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("atelier: Pipeline 'atelier-training' finished with status FAILURE")
    assert "'ingest'" in last
    assert f"{small_mnist / 'not-there'}" in result.stdout  # what the stage said
    assert "Traceback" not in result.stdout + result.stderr
    assert "MLflow runs closed: 0" in result.stdout  # whatever happens
    assert not (out / "reports").exists()


def test_parameters_are_refused_before_a_stage_runs(small_mnist: Path, environment: dict[str, str]) -> None:
    result = pipeline(small_mnist, environment, "--local", "--set", "runs.mnist-cgan.model=cgam")
    assert result.returncode == 2
    assert "did you mean 'cgan'?" in result.stderr
    assert not (small_mnist / "kubeflow").exists()


def test_outputs_that_are_there_are_kept(small_mnist: Path, environment: dict[str, str]) -> None:
    out = small_mnist / "out"
    out.mkdir()
    (out / "file").touch()
    result = pipeline(small_mnist, environment, "--local", "--out", str(out))
    assert result.returncode == 2
    assert "not empty" in result.stderr
    assert [path.name for path in out.iterdir()] == ["file"]

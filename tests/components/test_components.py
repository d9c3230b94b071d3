"""Components run as a pod runs them: one task, files handed to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.components import stages as components
from atelier.components.workspace import whole_numbers
from atelier.config import load_params
from atelier.files import read_json
from atelier.pipelines.training import arguments

pytestmark = pytest.mark.processes
PROJECT = Path(__file__).parents[2]


def ingest(tmp_path: Path, params: Any, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Start the command of the component's container with the input that Kubeflow gives it."""
    container = components.ingest.component_spec.implementation.container
    command = [part.replace("python3", sys.executable, 1) for part in container.command]
    artifact = {"name": "raw", "uri": str(tmp_path / "raw"), "type": {"schemaTitle": "system.Dataset"}}
    values = {"dataset": "mnist", "params": params, "repository": "", "revision": "", "dvc_remote": ""}
    handed = {
        "inputs": {"parameterValues": values},
        "outputs": {
            "artifacts": {"raw": {"artifacts": [artifact]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    options = ["--executor_input", json.dumps(handed), "--function_to_execute", "ingest"]
    return subprocess.run(
        [*command, *options], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )


def as_kubeflow_hands_them(values: Any) -> Any:
    """Every number in a struct arrives as a float."""
    if isinstance(values, dict):
        return {key: as_kubeflow_hands_them(value) for key, value in values.items()}
    if isinstance(values, list):
        return [as_kubeflow_hands_them(value) for value in values]
    return float(values) if isinstance(values, int) and not isinstance(values, bool) else values


def ingest_params(*overrides: str) -> Any:
    values = arguments(load_params(PROJECT / "params.yaml", overrides))
    return as_kubeflow_hands_them(values["datasets"][0]["ingest"])


def test_a_component_runs_its_stage_and_says_where_a_workspace_has_its_output(
    tmp_path: Path, mnist_files: Path, environment: dict[str, str]
) -> None:
    result = ingest(tmp_path, ingest_params(f"ingest.paths={{mnist: {mnist_files}}}"), environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "raw" / "train-images.idx").is_file()
    (written,) = read_json(tmp_path / "executor_output.json")["artifacts"]["raw"]["artifacts"]
    assert written["metadata"] == {"place": "data/raw/mnist"}


def test_wrong_params_end_the_step_with_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    params = ingest_params()
    params["ingest"]["limit_files"] = 0.0
    result = ingest(tmp_path, params, environment)
    assert result.returncode == 2
    assert "ingest.limit_files" in result.stderr
    assert "Traceback" not in result.stderr


def test_whole_numbers_come_out_as_they_went_in() -> None:
    values = arguments(load_params(PROJECT / "params.yaml"))
    assert whole_numbers(as_kubeflow_hands_them(values)) == values

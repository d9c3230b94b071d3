"""Components run as a pod runs them: one task, files handed to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.components.params import params
from atelier.config import Promote, load_params
from atelier.files import read_json
from atelier.pipelines.compiling import arguments

pytestmark = pytest.mark.processes
PROJECT = Path(__file__).parents[2]


def run(component: Any, tmp_path: Path, values: dict[str, Any], environment: dict[str, str]) -> Any:
    """Start the command of a component's container with the input that Kubeflow gives it."""
    container = component.component_spec.implementation.container
    command = [part.replace("python3", sys.executable, 1) for part in container.command]
    artifact = {"name": "params", "uri": str(tmp_path / "params"), "type": {"schemaTitle": "system.Artifact"}}
    handed = {
        "inputs": {"parameterValues": values},
        "outputs": {
            "artifacts": {"params": {"artifacts": [artifact]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    options = ["--executor_input", json.dumps(handed), "--function_to_execute", "params"]
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


def test_params_come_out_as_they_went_in(tmp_path: Path, environment: dict[str, str]) -> None:
    expected = load_params(PROJECT / "params.yaml").model_copy(update={"promote": Promote()})  # no stage reads those
    result = run(params, tmp_path, as_kubeflow_hands_them(arguments(expected)), environment)
    assert result.returncode == 0, result.stderr
    assert load_params(tmp_path / "params") == expected
    (written,) = read_json(tmp_path / "executor_output.json")["artifacts"]["params"]["artifacts"]
    assert written["metadata"] == {"place": "params.yaml"}


def test_wrong_params_end_the_step_with_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    values = arguments(load_params(PROJECT / "params.yaml"))
    values["train"]["pictures"] = 0
    result = run(params, tmp_path, values, environment)
    assert result.returncode == 2
    assert "train.pictures" in result.stderr
    assert "Traceback" not in result.stderr

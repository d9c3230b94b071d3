"""Searches: the same trials from the same results, whatever ends first or is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from atelier.cli import app
from atelier.config import Search, load_params
from atelier.errors import InputError
from atelier.search import TRIAL, best_of, importances, open_study, propose, trial_params
from small_trainings import HANG_SECONDS, make_workspace

KEYS = {"width": [4, 8], "generator_lr": {"log": [1e-4, 1e-2]}, "latent": {"integers": [2, 20]}}
SEARCH = """
search:
  small:
    run: gan  # the first
    keys: {width: [4, 8], generator_lr: {log: [1e-4, 1e-2]}}
    trials: 3
    kimg: 0.6
"""
VALIDATION = {"validation": {"share": 0.2, "every_kimg": 0.3, "samples": 100, "classifier_kimg": 0.3}}


def workspace(root: Path) -> Path:
    make_workspace(root)
    params = YAML(typ="safe", pure=True).load((root / "params.yaml").read_text())
    params["runs"] = {"gan": params["runs"]["gan"] | VALIDATION}
    (root / "params.yaml").write_text(json.dumps(params)[:-1] + "}")
    with (root / "params.yaml").open("w") as file:
        YAML().dump(params, file)
        file.write(SEARCH)
    return root


def study_of(definition: Search, numbers: Sequence[int], order: Sequence[int]) -> optuna.Study:
    """Trials that ended in some order, each with a value that its settings give it."""
    study, known = optuna.create_study(), optuna.create_study()
    made = {}
    for number in numbers:
        trial, settings = propose(known, definition, number)
        made[number] = optuna.trial.create_trial(
            params=settings,
            distributions=trial.distributions,
            value=abs(settings["generator_lr"] - 1e-3) + settings["latent"] / 1000,
            user_attrs={TRIAL: number},
        )
        known.add_trial(made[number])
    study.add_trials([made[number] for number in order])
    return study


def test_a_proposal_follows_from_the_trials_that_had_ended_by_then() -> None:
    definition = Search.model_validate({"run": "gan", "keys": KEYS, "parallel": 3})
    numbers = range(20)
    one = study_of(definition, numbers, numbers)
    other = study_of(definition, numbers, [*range(17), 19, 18, 17])
    proposed = propose(one, definition, 20)[1]
    assert propose(other, definition, 20)[1] == proposed
    # 18 and 19 were running: what they gave is not known to 20
    assert propose(study_of(definition, numbers, range(18)), definition, 20)[1] == proposed
    assert propose(study_of(definition, numbers, range(17)), definition, 20)[1] != proposed
    assert propose(one, definition.model_copy(update={"seed": 1}), 20)[1] != proposed
    assert set(importances(one)) == set(KEYS)
    assert importances(optuna.create_study()) == {}


def test_trials_come_nearer_to_what_is_best() -> None:
    definition = Search.model_validate({"run": "gan", "keys": KEYS, "parallel": 1})
    study = study_of(definition, range(40), range(40))
    values = [trial.values[0] for trial in study.trials]
    assert sum(values[20:]) < 0.7 * sum(values[:8]) * 20 / 8


def test_a_worse_trial_is_cut_short() -> None:
    definition = Search.model_validate({"run": "gan", "keys": KEYS, "parallel": 1})
    study = study_of(definition, range(10), range(10))
    measured = optuna.create_study()
    for number, trial in enumerate(study.trials):
        measured.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=float(number),
                intermediate_values={100: float(number), 200: float(number)},
                user_attrs={TRIAL: number},
            )
        )
    for distance, cut in ((1.0, False), (8.0, True)):
        trial, _ = propose(measured, definition, 10)
        trial.report(distance, 100)
        assert bool(trial.should_prune()) is cut


@pytest.mark.processes
def test_a_killed_search_makes_the_trials_of_an_undisturbed_one(tmp_path: Path) -> None:
    plain, killed = workspace(tmp_path / "plain"), workspace(tmp_path / "killed")
    command = [sys.executable, "-m", "atelier", "search", "small", "--root"]
    subprocess.run([*command, str(plain)], check=True, timeout=HANG_SECONDS)

    process = subprocess.Popen([*command, str(killed)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANG_SECONDS
    while not list(killed.glob("checkpoints/small-*/*.checkpoint")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 143, said
    subprocess.run([*command, str(killed)], check=True, timeout=HANG_SECONDS)

    found = []
    for root in (plain, killed):
        study = open_study("small", load_params(root / "params.yaml"), root)
        found.append({t.user_attrs[TRIAL]: (t.params, t.value, t.intermediate_values) for t in study.trials})
    assert found[0] == found[1]
    assert len(found[0]) == 3
    assert list((killed / "checkpoints").iterdir()) == []
    assert_runs_of_mlflow(killed)

    before = (killed / "params.yaml").read_text()
    said = CliRunner().invoke(app, ["search", "small", "--adopt", "--root", str(killed)], catch_exceptions=False).output
    best = best_of(study, "small").params
    assert load_params(killed / "params.yaml").run("gan").recipe.model_dump().items() >= best.items()
    assert "run: gan  # the first" in (killed / "params.yaml").read_text()
    assert len((killed / "params.yaml").read_text().splitlines()) >= len(before.splitlines())
    assert json.loads(said.splitlines()[-1].removeprefix("gan: ")).items() >= best.items()
    # the run is another now, and so is the search
    with pytest.raises(InputError, match=r"search/small: its trials are of another definition .* remove that folder"):
        open_study("small", load_params(killed / "params.yaml"), killed)


def assert_runs_of_mlflow(root: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("atelier")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.info.run_name == "search small")
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in trials) == ["small-000", "small-001", "small-002"]
    assert all(run.info.status == "FINISHED" for run in trials)
    assert all(client.list_artifacts(run.info.run_id, "images") for run in trials)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{run: gun, keys: {width: [4]}}", "search.a.run: runs has no 'gun'; did you mean 'gan'?"),
        ("{run: gan, keys: {widht: [4]}}", "search.a.keys: unknown key 'widht'; did you mean 'width'?"),
        ("{run: gan, keys: {kimg: [4]}}", "search.a.keys.kimg: is the same for all trials; leave it out"),
        ("{run: gan, keys: {width: [4, -1]}}", "search.a.keys.width: -1: "),
        (
            "{run: gan, keys: {width: {log: [4, 2]}}}",
            "search.a.keys.width: log: cannot be [4.0, 2.0]; the lower bound comes first",
        ),
        ("{run: gan, keys: {}}", "search.a.keys: expected at least 1"),
    ],
)
def test_a_search_that_no_trial_could_follow_is_one_line(tmp_path: Path, search: str, said: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"datasets: [mnist]\nruns: {{gan: {{dataset: mnist, model: cgan}}}}\nsearch: {{a: {search}}}\n")
    with pytest.raises(InputError) as caught:
        load_params(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trial_is_a_workspace_with_one_run_that_tells_nobody(tmp_path: Path) -> None:
    params = load_params(
        workspace(tmp_path / "workspace") / "params.yaml", ["notify.command=echo", "train.tick_kimg=7"]
    )
    written = trial_params("small", "small-000", {"width": 8}, params)
    assert written["runs"].keys() == {"small-000"}
    assert written["runs"]["small-000"].items() >= {"width": 8, "kimg": 0.6, "model": "cgan"}.items()
    assert written["train"]["tick_kimg"] == 7
    assert written.keys().isdisjoint({"search", "notify"})


def test_without_a_trial_there_is_no_best_one(tmp_path: Path) -> None:
    root = workspace(tmp_path / "workspace")
    refused: Any = CliRunner().invoke(app, ["search", "small", "--show", "--root", str(root)])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == "search.small: no trial has ended yet; run 'atelier search small' first"


def test_the_best_is_written_into_the_file_that_was_read(tmp_path: Path) -> None:
    root = workspace(tmp_path / "workspace")
    before = (root / "params.yaml").read_text()
    (root / "other.yaml").write_text(before)
    params = load_params(root / "other.yaml")
    study = open_study("small", params, root)
    trial, settings = propose(study, params.search_of("small"), 0)
    study.add_trial(
        optuna.trial.create_trial(params=settings, distributions=trial.distributions, value=1.0, user_attrs={TRIAL: 0})
    )
    command = ["search", "small", "--adopt", "--root", str(root), "--params", "other.yaml"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert load_params(root / "other.yaml").run("gan").recipe.model_dump().items() >= settings.items()
    assert (root / "params.yaml").read_text() == before

"""Runs that killed trainings left, and what a run says of where it came from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atelier.tracking import client, ensure_run
from atelier.tracking.feed import Feed
from atelier.tracking.origin import HOST_TAG, PARENT_TAG, PID_TAG, PIPELINE_RUN
from atelier.tracking.runs import close_runs

PARAMS = {"dataset": "mnist", "batch": 32, "data_dvc_md5": "a" * 32 + ".dir"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("store")
    client(root).search_experiments()
    return (root / "mlflow.db").read_bytes()


@pytest.fixture
def root(tmp_path: Path, empty: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(empty)
    return tmp_path


def status(root: Path, run_id: str) -> str:
    return str(client(root).get_run(run_id).info.status)


def test_only_runs_whose_process_is_gone_are_closed(root: Path) -> None:
    ours, gone, elsewhere = (ensure_run(root, name, PARAMS, None) for name in ("ours", "gone", "elsewhere"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    client(root).set_tag(gone, PID_TAG, str(ended.pid))
    client(root).set_tag(elsewhere, HOST_TAG, "elsewhere")
    said: list[str] = []
    assert close_runs(root, said.append) == 1
    assert [status(root, run) for run in (ours, gone, elsewhere)] == ["RUNNING", "KILLED", "RUNNING"]
    assert said[0].startswith(f"KILLED gone ({gone})")
    assert close_runs(root, print, older_than_hours=1) == 0
    assert close_runs(root, print, older_than_hours=0) == 1
    assert [status(root, run) for run in (ours, elsewhere)] == ["RUNNING", "KILLED"]


def test_another_training_of_the_same_name_ends_the_one_that_was_killed(root: Path) -> None:
    folder = root / "training"
    folder.mkdir()
    for training in ("this", "other"):
        feed = Feed(root, "run", PARAMS, folder, training, print)
        feed.start()
        while not feed.record.is_file() or training not in feed.record.read_text():
            feed.join(0.05)
        if training == "this":
            feed.given_up.set()  # as if it were killed: nobody ends its run
            feed.ended.set()
            feed.join()
        else:
            feed.end("FINISHED", 60)
    (experiment,) = (e for e in client(root).search_experiments() if e.name == "atelier")
    runs = client(root).search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]


def test_runs_of_a_pipeline_are_nested_in_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPELINE_RUN, "nightly-7")
    runs = [client(root).get_run(ensure_run(root, name, PARAMS, None)) for name in ("one", "other")]
    (parent,) = {run.data.tags[PARENT_TAG] for run in runs}
    assert client(root).get_run(parent).info.run_name == "nightly-7"
    assert status(root, parent) == "FINISHED"


def test_a_run_names_its_data_by_digest_once(root: Path) -> None:
    run_id = ensure_run(root, "run", PARAMS, None)
    ensure_run(root, "run", PARAMS, run_id)
    (data,) = client(root).get_run(run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("mnist", PARAMS["data_dvc_md5"])
    assert client(root).get_run(run_id).data.tags["mlflow.user"]


def test_what_the_machine_did_is_logged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.tracking.feed.MACHINE_SECONDS", 0.1)
    folder = root / "training"
    folder.mkdir()
    feed = Feed(root, "run", PARAMS, folder, "this", print)
    feed.start()
    while feed.machine is None or feed.machine._logging_step < 2:
        feed.join(0.05)
    feed.end("FINISHED", 60)
    logged = client(root).get_run(feed.machine._run_id).data.metrics
    assert 0 <= logged["system/cpu_utilization_percentage"] <= 100
    assert logged["system/system_memory_usage_megabytes"] > 0

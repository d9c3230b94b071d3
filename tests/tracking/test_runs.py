"""Runs that killed trainings left, and what a run says of where it came from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from atelier.errors import AtelierError, InputError
from atelier.tracking import client
from atelier.tracking.feed import Feed
from atelier.tracking.origin import (
    GIT_COMMIT,
    HOST_TAG,
    PARENT_TAG,
    PID_TAG,
    PIPELINE_RUN,
    code_of,
    origin_tags,
    user_name,
)
from atelier.tracking.runs import RunRecord, close_pipeline_runs, close_runs, ensure_run

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
        while (record := RunRecord.find(folder)) is None or (record.training, bool(record.run_id)) != (training, True):
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


@pytest.mark.parametrize("name", ["it's", 'the "last" one', "100%_done"])
def test_a_pipeline_run_of_any_name_is_one_parent(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(PIPELINE_RUN, name)
    runs = [client(root).get_run(ensure_run(root, each, PARAMS, None)) for each in ("one", "other")]
    (parent,) = {run.data.tags[PARENT_TAG] for run in runs}
    assert client(root).get_run(parent).info.run_name == name
    assert close_pipeline_runs(root, name) == 2


def test_a_name_that_mlflow_cannot_search_for_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPELINE_RUN, 'it\'s "it"')
    with pytest.raises(InputError, match="both ' and"):
        ensure_run(root, "run", PARAMS, None)


def test_more_runs_than_a_page_holds_are_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *a, **options: search(*a, **options | {"max_results": 2}))
    for number in range(5):
        ensure_run(root, str(number), PARAMS, None)
    client(root)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert close_runs(root, print, older_than_hours=0) == 5


def test_an_experiment_in_the_trash_is_told_and_stays_there(root: Path) -> None:
    ensure_run(root, "run", PARAMS, None)
    experiment = client(root).get_experiment_by_name("atelier")
    client(root).delete_experiment(experiment.experiment_id)
    with pytest.raises(InputError, match=f"lies in the trash.*restore --experiment-id {experiment.experiment_id}"):
        ensure_run(root, "run", PARAMS, None)
    assert client(root).get_experiment_by_name("atelier").lifecycle_stage == "deleted"


def repository(folder: Path, message: str) -> str:
    """A checkout with a commit; which."""
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", message]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], cwd=folder, check=True)
    found = code_of(folder)
    assert found is not None
    return found.commit


def test_a_run_names_the_commit_of_its_workspace_whatever_git_was_told(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other, ours = repository(elsewhere, "other"), repository(root, "ours")
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    monkeypatch.setenv(GIT_COMMIT, other)
    monkeypatch.setenv(PIPELINE_RUN, "nightly-7")
    tags = client(root).get_run(ensure_run(root, "run", PARAMS, None)).data.tags
    above = client(root).get_run(tags[PARENT_TAG]).data.tags
    assert tags["mlflow.source.git.commit"] == above["mlflow.source.git.commit"] == ours != other
    # a stage in a container or a workspace of its own has no checkout
    (root / ".git").rename(root / "git")
    tags = client(root).get_run(ensure_run(root, "run", PARAMS, None)).data.tags
    assert tags["mlflow.source.git.commit"] == other


def test_no_checkout_no_commit_and_no_git_are_nothing_and_a_refusal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_of(tmp_path) is None
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert code_of(tmp_path) is None
    repository(tmp_path, "one")
    assert code_of(tmp_path).clean  # type: ignore[union-attr]
    (tmp_path / "dvc.lock").write_text("what was made")
    assert code_of(tmp_path).clean  # type: ignore[union-attr]
    (tmp_path / "new.py").write_text("")
    assert not code_of(tmp_path).clean  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert code_of(tmp_path) is None
    # the variable by which git's own tests stand for another owner
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(AtelierError, match=r"dubious ownership.*git config --global --add safe\.directory"):
        code_of(tmp_path)
    assert origin_tags(client(tmp_path), "0", tmp_path)["mlflow.user"]


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987654321)
    assert user_name() == "uid 987654321"


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    for content in ("", "[]", '{"run_id": "../../etc", "training": "x", "mark": "y"}', '{"format": 2}'):
        RunRecord.path(tmp_path).write_text(content)
        with pytest.raises(AtelierError, match=r"^[^\n]*mlflow\.json: [^\n]*$"):
            RunRecord.find(tmp_path)


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

"""Which store a workspace uses, that it stays one, and what is told of it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from atelier.errors import AtelierError, InputError
from atelier.journal import record_folder
from atelier.tracking.runs import ensure_run
from atelier.tracking.store import (
    PLACES,
    check_uri,
    client,
    mlflow_errors,
    public,
    public_uri,
    reason,
    sqlite_file,
    sqlite_uri,
    using,
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("store")
    client(root)
    return (root / "mlflow.db").read_bytes()


def fill(root: Path) -> str:
    """A run with an artifact, a logged model and a version; the run's id."""
    run_id = ensure_run(root, "run", {"dataset": "own"}, None)
    mlflow_client = client(root)
    mlflow_client.log_text(run_id, "kept", "note.txt")
    experiment = mlflow_client.get_run(run_id).info.experiment_id
    model = mlflow_client.create_logged_model(experiment, name="model", source_run_id=run_id)
    mlflow_client.create_registered_model("digits")
    mlflow_client.create_model_version("digits", model.model_uri, run_id=run_id, model_id=model.model_id)
    return run_id


def places(root: Path) -> set[str]:
    """All that the store says of where artifacts lie."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        rows = [row for table, column in PLACES.items() for row in database.execute(f"select {column} from {table}")]
    return {place for (place,) in rows if place}


def test_a_store_chosen_once_is_not_taken_for_the_users_choice(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        client(tmp_path / name).search_experiments()
        assert (tmp_path / name / "mlflow.db").is_file()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_killed_making_of_a_store_leaves_none(tmp_path: Path) -> None:
    code = """
import os, signal, sqlite3, sys
from pathlib import Path
from atelier.tracking import store

class Database(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement.startswith('CREATE TABLE "runs"') or statement.startswith("CREATE TABLE runs"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)

connect = sqlite3.connect
store.sqlite3.connect = lambda *a, **b: connect(*a, **b, factory=Database)
store.client(Path(sys.argv[1]))
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert client(tmp_path).search_runs(["0"]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_made_by_two_at_once_is_one(tmp_path: Path) -> None:
    told: list[object] = []

    def make() -> None:
        with mlflow_errors(tmp_path):
            told.append(ensure_run(tmp_path, "run", {}, None))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({client(tmp_path).get_run(str(run_id)).info.experiment_id for run_id in told}) == 1
    assert len(told) == 2


@pytest.mark.parametrize("name", ["branch%2Fname", "my%20project", "what?now", "a #1 b", "größe"])
def test_a_workspace_of_any_name_has_its_store_in_it(tmp_path: Path, empty: bytes, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty)
    run_id = fill(root)
    assert (root / "mlartifacts").is_dir()
    assert sqlite_file(sqlite_uri(root / "mlflow.db")) == (root / "mlflow.db").resolve()
    with using(sqlite_uri(root / "mlflow.db")):
        assert client(tmp_path).get_run(run_id).info.run_name == "run"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_store_is_made_where_files_have_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source)

    monkeypatch.setattr(os, "link", link)
    fill(tmp_path)
    assert len(list(tmp_path.glob("mlartifacts/**/note.txt"))) == 1


def test_a_copy_keeps_its_own_artifacts_and_a_moved_workspace_finds_them(tmp_path: Path, empty: bytes) -> None:
    one, copy, moved = (tmp_path / name for name in ("one_%", "one_%/copy", "moved"))
    one.mkdir()
    (one / "mlflow.db").write_bytes(empty)
    fill(one)
    shutil.copytree(one, tmp_path / "aside")
    (tmp_path / "aside").rename(copy)
    # another run: this process remembers where it wrote artifacts of the first
    client(copy).log_text(ensure_run(copy, "other", {}, None), "of the copy", "other.txt")
    assert {place.partition("/mlartifacts")[0] for place in places(copy)} == {copy.as_uri()}
    assert not list(one.glob("mlartifacts/**/other.txt"))
    assert len(list(copy.glob("mlartifacts/**/other.txt"))) == 1
    assert {place.partition("/mlartifacts")[0] for place in places(one)} == {one.as_uri()}
    one.rename(moved)
    client(moved)
    source = client(moved).get_model_version_download_uri("digits", "1")
    assert source.startswith(moved.as_uri())
    assert len(list(moved.glob("mlartifacts/**/note.txt"))) == 1
    assert not one.exists()


def test_artifacts_that_a_person_keeps_elsewhere_stay_there(tmp_path: Path, empty: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty)
    client(tmp_path).create_experiment("atelier", artifact_location="s3://bucket/mlartifacts")
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "mlflow.db", tmp_path / "moved")
    assert client(tmp_path / "moved").get_experiment_by_name("atelier").artifact_location == "s3://bucket/mlartifacts"


def test_a_temporary_experiment_of_dvc_uses_the_store_of_its_workspace(tmp_path: Path, empty: bytes) -> None:
    root = tmp_path / "project" / "part"
    for workspace in (root, root / ".dvc/tmp/exps/standalone/tmpabc/part"):
        (workspace / ".dvc").mkdir(parents=True)
    (root / "mlflow.db").write_bytes(empty)
    (root / "inner").mkdir()
    run_id = fill(workspace)
    assert client(root).get_run(run_id).info.run_name == "run"
    assert {place.partition("/mlartifacts")[0] for place in places(root)} == {root.as_uri()}
    assert not list(workspace.glob("ml*"))
    assert record_folder(workspace, "gan", "0" * 64) == record_folder(root, "gan", "0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database at all, but long enough to be one" * 100, "file is not a database"),
        (b"", None),
    ],
)
def test_a_file_that_is_no_store(tmp_path: Path, content: bytes, message: str | None) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    if message is None:
        client(tmp_path).search_experiments()  # what a killed making leaves
        return
    with (
        pytest.raises(AtelierError, match=rf"^MLflow at sqlite:///[^\n]*/mlflow\.db: {message}$"),
        mlflow_errors(tmp_path),
    ):
        client(tmp_path).search_experiments()


def test_a_store_that_is_locked_older_or_not_to_be_written_is_one_line(
    tmp_path: Path, empty: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(root: Path) -> str:
        with pytest.raises(AtelierError) as caught, mlflow_errors(root):
            client(root).create_registered_model("digits")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    monkeypatch.setattr("atelier.tracking.store.LOCK_SECONDS", 0.1)
    for name in ("locked", "older", "nowhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mlflow.db").write_bytes(empty)
    with closing(sqlite3.connect(tmp_path / "locked" / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        assert told(tmp_path / "locked").endswith("database is locked")
    with closing(sqlite3.connect(tmp_path / "older" / "mlflow.db", isolation_level=None)) as other:
        other.execute("update alembic_version set version_num = '451aebb31d03'")
    assert "mlflow db upgrade" in told(tmp_path / "older")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{tmp_path}/nowhere/mlflow.db?mode=ro&uri=true")
    assert "readonly database" in told(tmp_path / "nowhere")
    assert "Traceback" not in capfd.readouterr().err


SECRET = "c0rrect/h@rse"


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:c0rrect%2Fh%40rse@127.0.0.1:9",
        f"postgresql://bob:{SECRET}@127.0.0.1:9/mlflow",
        "postgresql+psycopg2://127.0.0.1:9/mlflow?user=bob&password=c0rrect%2Fh%40rse",
        f"mysql://bob:{SECRET}@db/mlflow?ssl_ca=x",
    ],
)
def test_passwords_are_not_told_in_any_form(uri: str) -> None:
    with using(uri):
        for form in (
            SECRET,
            "c0rrect%2Fh%40rse",
            uri,
            f"to {uri}/api failed",
            "Port could not be cast: 'c0rrect'",
            "h@rse",
        ):
            shown = public(form)
            assert not any(part in shown for part in ("c0rrect", "rse")), shown
        assert not any(part in public_uri(uri) for part in ("c0rrect", "rse"))
    for text in (uri, f"('{uri}')"):
        assert "c0rrect%2F" not in public(text)
    assert public("https://host:5000/a?b=c sqlite:////home/x/mlflow.db") == (
        "https://host:5000/a?b=c sqlite:////home/x/mlflow.db"
    )


def test_a_server_that_is_away_is_told_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        using("http://bob:c0rrect%2Fh%40rse@127.0.0.1:9"),
        pytest.raises(AtelierError, match=r"^MLflow at http://127\.0\.0\.1:9: [^\n]*$") as told,
        mlflow_errors(tmp_path),
    ):
        client(tmp_path).search_experiments()
    assert not any(part in str(told.value) for part in ("c0rrect", "h@rse", "h%40rse", "bob"))


@pytest.mark.parametrize("uri", [f"http://bob:{SECRET}@host:5000", "https://bob:12/34@host", "http://", "http://h:0"])
def test_an_address_that_would_be_read_otherwise_is_refused_unread(uri: str) -> None:
    with using(uri), pytest.raises(InputError, match="MLFLOW_TRACKING_URI: no address") as told:
        client(Path())
    assert "12" not in str(told.value)
    assert "c0rrect" not in str(told.value)
    check_uri("https://bob:12%2F34@host/base", "it")


def test_what_an_error_announces_is_told_with_it() -> None:
    assert reason(RuntimeError("\nThese failed:\n\n##### a #####\nPermission denied\nmore\n")) == (
        "These failed: ##### a ##### Permission denied"
    )
    assert reason(RuntimeError("one line\nanother")) == "one line"
    assert reason(RuntimeError("")) == "RuntimeError"

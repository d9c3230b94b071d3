"""The three uses of a registry on the workspace's SQLite file and on MLflow before PostgreSQL and S3."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from mlflow.artifacts import list_artifacts
from registries import add_version, assert_one_champion, promote_at_once, report

from atelier.config import Promote, load_params
from atelier.errors import AtelierError
from atelier.evaluation.compare import compare
from atelier.evaluation.evaluate import evaluate
from atelier.files import read_json
from atelier.journal import record_folder
from atelier.registry.history import alias_version
from atelier.registry.promote import promote, read, rollback
from atelier.registry.register import register
from atelier.registry.sample import sample
from atelier.tracking import client, every
from atelier.tracking.runs import RunRecord
from atelier.training.train import train
from filled_store import FILE, Store
from ports import free_port
from small_trainings import children

SCRIPT = Path(__file__).parents[2] / "deploy" / "server.py"
NAME = "mnist-cvae"
pytestmark = pytest.mark.processes


class TeamServer:
    """A running `deploy/server.py`, and what `client.env` tells its clients."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {key: value for key, value in environment.items() if not key.startswith("AWS_")}
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SCRIPT), "--folder", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith(f"MLflow at http://127.0.0.1:{self.port}"), (said, self.process.poll())
        lines = shlex.split((self.folder / "client.env").read_text(), comments=True)
        self.client = dict(line.split("=", 1) for line in lines if line != "export")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)

    def object_store(self) -> int:
        """The process id of its S3 server."""
        (found,) = (pid for pid in children(self.process) if "weed" in Path(f"/proc/{pid}/cmdline").read_text())
        return found


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[TeamServer]:
    # not below pytest's folder, which PostgreSQL's own user may not enter
    with tempfile.TemporaryDirectory(prefix="atelier-server-") as folder:
        Path(folder).chmod(0o755)
        running = TeamServer(Path(folder), environment)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(params=["sqlite", "server"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace's own store, and the server as a client without keys of the object store sees it."""
    if request.param == "server":
        become_client(request.getfixturevalue("server"), monkeypatch)


def become_client(server: TeamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.client.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("any_store")
def test_from_training_to_promotion_and_back(trained: Path, tmp_path: Path) -> None:
    for version, kimg in enumerate((0.3, 2.0, 0.2), start=1):
        run = f"runs={{{NAME}: {{dataset: mnist, model: cvae, kimg: {kimg}, batch: 50, width: 8, precision: fp32}}}}"
        params = load_params(trained / "params.yaml", (run, "train.pictures=1"))
        train(NAME, params, trained, print)
        evaluate(NAME, params, trained, print)
        register(NAME, params, trained, print)
        newest = max(trained.glob(f"runs/{NAME}/*/version.json"), key=lambda path: path.stat().st_mtime_ns)
        assert read_json(newest)["uri"] == f"models:/{NAME}/{version}"
    gates = Promote(at_most={})
    for version in (1, 2):
        promote(NAME, version, "champion", gates, trained, print)
    with pytest.raises(AtelierError, match=rf"models:/{NAME}/3 is not promoted: fd_classifier .* better than"):
        promote(NAME, None, "champion", gates, trained, print)
    assert rollback(NAME, "champion", trained, print) == 1
    assert alias_version(client(trained), NAME, "champion") == 1
    assert [(c.action, c.version) for c in read(NAME, "champion", trained).changes] == [
        *(("promote", 1), ("promote", 2), ("rollback", 1)),
    ]
    sample(f"models:/{NAME}@champion", 10, 0, None, tmp_path / "digits.png", trained)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    compare(params, trained, print)
    assert f"models:/{NAME}/3" in (trained / "reports" / "local.js").read_text()


def test_sixteen_clients_at_once_make_one_champion(
    server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_client(server, monkeypatch)
    for mean in range(100, 84, -1):
        add_version(tmp_path, "digits", report(float(mean)))
    told = promote_at_once(tmp_path, "digits", list(range(1, 17)), server.client)
    assert_one_champion(tmp_path, "digits", told)


def test_of_what_many_made_gc_removes_ones_own(
    server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become_client(server, monkeypatch)
    ours, theirs = (Store(tmp_path / name, "shared") for name in ("ours", "theirs"))
    runs = list[str]()
    for number, store in enumerate((ours, theirs, ours, theirs), start=1):
        runs.append(run_id := store.run(f"version {number}", days=2))
        weights = 64 * str(number)
        store.version(weights, run_id)
        folder = record_folder(store.root, "gone", weights)
        RunRecord(run_id=run_id, training="", mark=32 * "0").write(RunRecord.path(folder))
    assert ours.call("--versions", "1", "--days", "1", "--json", "--yes") == 0
    found = {one["name"].split()[0]: one["bytes"] for one in json.loads(capsys.readouterr().out)}
    assert {name for name in found if not name.startswith("runs/")} == {
        "models:/shared/1",
        "models:/shared/3",
        "version",
    }
    assert found["models:/shared/1"] == len(FILE)
    assert ours.versions() == [2, 4]
    left = {one.source_run_id for one in every(ours.client.search_logged_models, [ours.experiment])}
    assert left & set(runs) == {runs[1], runs[3]}
    assert not list_artifacts(run_id=runs[0])
    assert list_artifacts(run_id=runs[1])
    theirs.call("--versions", "1", "--yes")
    assert theirs.versions() == [4]


def test_strangers_and_other_names_are_refused(
    server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_client(server, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    with pytest.raises(AtelierError, match=r"^MLflow at http://127\.0\.0\.1:\d+: [^\n]*(401|not authenticated)[^\n]*$"):
        promote("digits", None, "champion", Promote(), tmp_path, print)
    address = server.client["MLFLOW_TRACKING_URI"]
    search = f"{address}/api/2.0/mlflow/registered-models/search"
    assert requests.get(search, timeout=60).status_code == 401
    user = (server.client["MLFLOW_TRACKING_USERNAME"], server.client["MLFLOW_TRACKING_PASSWORD"])
    assert requests.get(search, auth=user, timeout=60).status_code == 200
    assert requests.get(search, auth=user, headers={"Host": "elsewhere.example"}, timeout=60).status_code == 403


def test_no_port_of_the_object_store_takes_a_word_from_another_user(server: TeamServer) -> None:
    store = psutil.Process(server.object_store())
    ports = {one.laddr.port for one in store.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    option = "-s3.port="
    (s3,) = (int(word.removeprefix(option)) for word in store.cmdline() if word.startswith(option))
    assert requests.get(f"http://127.0.0.1:{s3}/mlflow", timeout=60).status_code == 403
    for port in sorted(ports - {s3}):
        answers = [first_word(port, protocol, secret) for protocol in ("http/1.1", "h2") for secret in (False, True)]
        assert answers == [b"HTTP/1.0 400", b"", b"", b""] or answers == [b""] * 4, port
    assert len(ports) == 8
    for name in ("objects", "seaweed.pem", "s3.json"):
        assert not (server.folder / name).stat().st_mode & 0o077


def first_word(port: int, protocol: str, encrypted: bool) -> bytes:
    """How a port begins its answer to somebody without a certificate who asks for the files of the bucket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    if protocol == "http/1.1":
        asked = b"GET /buckets/mlflow/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain) if encrypted else plain as connection:
                connection.sendall(asked)
                return connection.recv(12)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_what_fails_on_the_way_makes_nothing_and_can_be_repeated(
    server: TeamServer, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_client(server, monkeypatch)
    params = load_params(trained / "params.yaml", ("register.prefix=later-",))
    name = "later-mnist-cgan"

    os.kill(server.object_store(), signal.SIGKILL)
    with pytest.raises(AtelierError, match=r"^MLflow at http://127\.0\.0\.1:\d+: [^\n]*$"):
        register("mnist-cgan", params, trained, print)
    assert client(trained).search_model_versions(f"name = '{name}'") == []

    server.stop()
    for patient in ("refused", "stalled"):
        with socket.socket() as silent:  # it takes connections and never answers
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            silent.bind(("127.0.0.1", server.port))
            if patient == "stalled":
                silent.listen()
                monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
            with pytest.raises(AtelierError, match=r"^MLflow at http://127\.0\.0\.1:\d+: [^\n]*$"):
                register("mnist-cgan", params, trained, print)
            with pytest.raises(AtelierError, match=r"^MLflow at http://127\.0\.0\.1:\d+: [^\n]*$"):
                promote(name, None, "champion", Promote(), trained, print)
        assert not list(trained.glob("registry/*"))

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    server.start()
    register("mnist-cgan", params, trained, print)
    promote(name, None, "champion", Promote(at_most={}), trained, print)
    assert alias_version(client(trained), name, "champion") == 1

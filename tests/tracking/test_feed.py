"""Feeding MLflow from a journal: each step once and one run, whatever the server does meanwhile."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from atelier.errors import AtelierError, InputError
from atelier.files import read_json
from atelier.mark import Mark
from atelier.pictures import save_png, tile
from atelier.tracking import client
from atelier.tracking.feed import LINES_PER_BATCH, Feed, finish_run, last_step_sent, send_journal
from atelier.tracking.runs import ensure_run
from atelier.tracking.shown import send_pictures
from ports import free_port
from small_trainings import figures_in_journal, figures_in_mlflow

PARAMS = {"dataset": "mnist", "batch": 32}


class Training:
    """The files that a training writes, line by line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.journal, self.timing = folder / "journal.jsonl", folder / "timing.jsonl"
        self.lines = 0

    @property
    def run_id(self) -> str | None:
        record = self.folder / "mlflow.json"
        return read_json(record)["run_id"] if record.is_file() else None

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self.lines += 1
            kimg = self.lines / 2
            append(self.timing, {"kimg": kimg, "unix": time.time(), "seconds": 0.0})
            append(self.journal, {"kimg": kimg, "step": self.lines, "loss": 1 / self.lines})

    def go_back(self, lines: int) -> None:
        """What resuming from a checkpoint does."""
        for path in (self.journal, self.timing):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
        self.lines = lines

    def feed(self, training: str = "this") -> Feed:
        feed = Feed(self.folder.parent, "run", PARAMS, self.folder, training, print)
        feed.start()
        return feed


def append(path: Path, line: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.tracking.feed.POLL_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with no run in it; making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    client(root).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def training(tmp_path: Path, store: Path) -> Training:
    (tmp_path / "mlflow.db").write_bytes(store.read_bytes())
    return Training(tmp_path / "training")


def assert_complete(training: Training, status: str = "FINISHED", uri: str | None = None) -> None:
    assert figures_in_mlflow(training.folder.parent, uri) == (status, figures_in_journal(training.journal))


def test_more_lines_than_one_call_takes(training: Training) -> None:
    training.write(LINES_PER_BATCH * 2 + 50)
    training.feed().end("FINISHED", 60)
    assert_complete(training)


def test_killed_training_goes_on_in_its_run(training: Training) -> None:
    training.write(5)
    training.feed().end("KILLED", 60)
    assert_complete(training, "KILLED")
    training.go_back(3)
    second = training.feed()
    training.write(4)
    second.end("FINISHED", 60)
    assert training.lines == 7
    assert_complete(training)


def test_steps_written_again_after_the_feed_has_begun_are_there_once(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.write(5)
    training.feed().end("KILLED", 60)
    training.go_back(3)
    begun = threading.Event()
    monkeypatch.setattr("atelier.tracking.feed.last_step_sent", lambda *a: (last_step_sent(*a), begun.set())[0])
    second = training.feed()
    assert begun.wait(60)
    for _ in range(4):
        training.write(1)
        second.join(0.1)
    second.end("FINISHED", 60)
    assert_complete(training)


def test_hard_killed_training_goes_on_in_its_run(training: Training) -> None:
    training.write(5)
    first = training.feed()
    while training.run_id is None:
        time.sleep(0.01)
    first.given_up.set()  # it neither sends what is left nor ends the run
    first.ended.set()
    first.join()
    training.go_back(2)
    second = training.feed()
    training.write(6)
    second.end("FINISHED", 60)
    assert_complete(training)


def test_a_run_whose_making_was_not_heard_of_is_found_again(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = MlflowClient.create_run
    failures = iter([True, False])

    def made_and_lost(*arguments: Any, **options: Any) -> Any:
        run = make(*arguments, **options)
        if next(failures):
            raise ConnectionError("connection reset")
        return run

    monkeypatch.setattr("mlflow.MlflowClient.create_run", made_and_lost)
    training.write(5)
    training.feed().end("FINISHED", 60)
    assert_complete(training)


def test_a_line_sent_twice_is_there_once(training: Training) -> None:
    training.write(5)
    training.feed().end("RUNNING", 60)
    send_journal(client(training.folder.parent), training.run_id, training.journal, training.timing, sent=-1)
    assert_complete(training, "RUNNING")


def test_a_picture_is_there_once_as_it_was_drawn_and_not_before_it_is_whole(training: Training) -> None:
    images = np.zeros((8, 4, 4, 1), np.uint8)
    (training.folder / "pictures").mkdir()
    first, second = (training.folder / "pictures" / f"{step:09d}.png" for step in (500, 1000))
    for path in (first, second):
        save_png(path, tile(images, 4), Mark(run="run", weights_sha256="a" * 64))
    (training.folder / "pictures" / "._000000500.png").write_bytes(b"left by a file manager")
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    training.write(2)
    training.feed().end("KILLED", 60)
    mlflow_client = client(training.folder.parent)

    def shown() -> list[str]:
        return sorted(Path(info.path).name for info in mlflow_client.list_artifacts(training.run_id, "images"))

    before = shown()
    assert len(before) == 2, "itself, and small"
    second.write_bytes(content)
    training.go_back(1)
    resumed = training.feed()
    training.write(1)
    resumed.end("FINISHED", 60)
    send_pictures(mlflow_client, training.run_id, training.folder / "pictures", set())
    assert len(shown()) == 4
    assert set(before) < set(shown())
    for step, path in ((500, first), (1000, second)):
        (name,) = (name for name in shown() if f"+step+{step}+" in name and name.endswith(".png"))
        logged = mlflow_client.download_artifacts(training.run_id, f"images/{name}")
        assert Path(logged).read_bytes() == path.read_bytes()
        small = mlflow_client.download_artifacts(training.run_id, f"images/{name.removesuffix('.png')}+compressed.webp")
        with Image.open(small) as picture:
            assert b"trainedAlgorithmicMedia" in picture.info["xmp"]
    assert mlflow_client.get_run(training.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_a_time_whose_line_is_not_written_yet_holds_nothing_up(training: Training) -> None:
    training.write(5)
    append(training.timing, {"kimg": 3.0, "unix": time.time(), "seconds": 0.0})
    training.feed().end("FINISHED", 10)
    assert_complete(training)


def test_another_training_gets_another_run(training: Training) -> None:
    training.write(2)
    training.feed("one").end("KILLED", 60)
    first = training.run_id
    training.feed("another").end("FINISHED", 60)
    assert training.run_id != first


def test_deleted_run_is_replaced(training: Training) -> None:
    training.write(2)
    training.feed().end("KILLED", 60)
    client(training.folder.parent).delete_run(training.run_id)
    training.write(2)
    training.feed().end("FINISHED", 60)
    assert_complete(training)


def test_run_given_by_the_environment_is_used(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow_client = client(training.folder.parent)
    run = mlflow_client.create_run(mlflow_client.create_experiment("atelier"))
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    training.write(2)
    training.feed().end("FINISHED", 60)
    assert training.run_id == run.info.run_id
    assert_complete(training)


def test_unknown_run_given_by_the_environment_is_refused(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(InputError, match=r"MLFLOW_RUN_ID=0+: no such run"):
        ensure_run(training.folder.parent, "run", PARAMS, None)


class Proxy:
    """Stands between a client and a server on this machine, and lets it seem slow, deaf or gone."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.mode = "pass"  # "slow", "deaf": answers are swallowed, "gone": connections are closed
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self.server_port)) as far:
            if self.mode == "gone":
                return
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            while answer := far.recv(65536):
                if self.mode == "slow":
                    time.sleep(0.7)
                if self.mode != "deaf":
                    near.sendall(answer)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while request := near.recv(65536):
                if self.mode == "gone":
                    near.close()
                    far.close()
                    return
                far.sendall(request)


class Server:
    """A real `mlflow server` on an SQLite store, which can be killed and started again."""

    def __init__(self, folder: Path, store: Path) -> None:
        (folder / "server.db").write_bytes(store.read_bytes())
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"),
                *(f"--backend-store-uri=sqlite:///{self.folder}/server.db", f"--artifacts-destination={self.folder}"),
            ],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(1200):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return
            assert self.process.poll() is None
            time.sleep(0.1)
        raise AssertionError("mlflow server does not start")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)  # its own session: it and its workers
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, store: Path) -> Iterator[Server]:
    server = Server(tmp_path, store)
    server.start()
    yield server
    server.kill()


@pytest.mark.processes
def test_server_slow_deaf_gone_and_killed(server: Server, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")

    def all_sent() -> bool:
        with suppress(Exception):
            _, figures = figures_in_mlflow(training.folder.parent, f"sqlite:///{server.folder}/server.db")
            return len(figures["train/loss"]) == training.lines
        return False

    def wait_until_sent() -> None:
        for _ in range(600):
            if all_sent():
                return
            time.sleep(0.1)
        raise AssertionError("figures are missing")

    feed = training.feed()
    training.write(3)
    wait_until_sent()
    for mode in ("slow", "deaf", "gone"):
        proxy.mode = mode
        training.write(30)
        if mode == "gone":
            time.sleep(1)
            assert not all_sent()
        else:
            wait_until_sent()  # deaf: they arrive, but the feed does not learn of it, and sends them again
            time.sleep(3)
    proxy.mode = "pass"
    wait_until_sent()

    training.write(20)
    server.kill()
    training.write(20)
    feed.end("KILLED", 0.5)  # a training that must stop does not wait for a server that is gone
    assert not feed.complete
    feed.join(60)
    training.go_back(60)
    second = training.feed()
    training.write(50)
    server.start()
    second.end("FINISHED", 120)
    assert second.complete
    assert_complete(training, uri=f"sqlite:///{server.folder}/server.db")


def test_register_sends_what_a_training_could_not(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    training.write(10)
    feed = training.feed()
    feed.end("FINISHED", 0.5)
    assert not feed.complete
    feed.join(60)
    with pytest.raises(AtelierError, match=r"MLflow at http://127.0.0.1:9: "):
        finish_run(training.folder.parent, "run", PARAMS, training.journal, training.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run_id = finish_run(training.folder.parent, "run", PARAMS, training.journal, training.folder)
    client(training.folder.parent).set_terminated(run_id)
    assert_complete(training)

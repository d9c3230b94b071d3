"""How far a training is, told to Trainer's status server while it runs."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from kubernetes_api import KubernetesApi, kubernetes_api
from listening import certificate, listening
from test_launcher import JOB, NAME, launch

from atelier.components import launcher, progress
from atelier.components.progress import told_to_trainer
from small_trainings import Training, make_workspace

pytestmark = pytest.mark.processes
PATH = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{JOB.namespace}/trainjobs/{NAME}/status"


@contextmanager
def status_server(api: KubernetesApi, folder: Path) -> Iterator[str]:
    """What Trainer 2.3 runs (pkg/statusserver): by TLS, with the token of the pod's service account."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            allowed = self.headers["Authorization"] == f"Bearer {(folder / 'token').read_text()}"
            if allowed and self.path == PATH:
                api.trainer_status(NAME, content["trainerStatus"])
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    (folder / "ca.crt").write_bytes(certificate())
    (folder / "token").write_text("first")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt")
    with listening(Handler, context) as url:
        yield url + PATH


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A TrainJob whose nodes have what Trainer puts into their environment."""
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(launcher, "FIRST_WAIT_SECONDS", 0.02)
    with kubernetes_api() as api, status_server(api, tmp_path) as url:
        variables = {"URL": url, "CA_CERT": str(tmp_path / "ca.crt"), "TOKEN": str(tmp_path / "token")}
        for name, value in variables.items():
            monkeypatch.setenv(f"KUBEFLOW_TRAINER_SERVER_{name}", value)
        yield api


def test_it_rises_in_the_job_and_the_launcher_tells_it(job: KubernetesApi, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")

    def play() -> None:
        job.wait_for("watch")
        training = Training(root, "gan")
        with told_to_trainer("gan", root):
            training.finish()
        job.condition(NAME, "Complete")

    said = launch(job, play, replace(JOB, deadline_seconds=600))
    told = [one["status"]["trainerStatus"] for *_, one in job.events if "trainerStatus" in one.get("status", {})]
    percents = [status["progressPercentage"] for status in told]
    assert percents == sorted(percents)
    assert percents[0] < percents[-1] == 100
    assert told[-1]["estimatedRemainingSeconds"] == 0
    assert "discriminator_loss" in [metric["name"] for metric in told[-1]["metrics"]]
    assert f"TrainJob {NAME}: running, 100%" in said


def test_a_token_is_read_anew_and_a_refusal_is_said_once(
    job: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job.jobs[NAME] = JOB.manifest()
    root = make_workspace(tmp_path / "workspace")
    folder = root / "models" / "gan"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text('{"kimg": 1.2, "loss": 1.0}\n')
    with told_to_trainer("gan", root):
        pass  # what is there at the end is told
    assert [one["status"]["trainerStatus"]["progressPercentage"] for *_, one in job.events] == [50]
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "gone"))
    (tmp_path / "gone").write_text("of another job")
    capfd.readouterr()
    with told_to_trainer("gan", root):
        pass
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Kubeflow Trainer is not told how far gan is: 403 Client Error: Forbidden for url: https://")
    monkeypatch.setenv("PET_NODE_RANK", "1")
    with told_to_trainer("gan", root):
        pass
    assert capfd.readouterr().err == ""  # the first node tells it

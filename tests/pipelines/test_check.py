"""`atelier pipeline check` against a cluster of plain objects: all well, and each fault found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from kubeflow_server import kubeflow_server
from kubernetes import client
from listening import listening

from atelier.cli import main
from atelier.pipelines import check

PROJECT = Path(__file__).parents[2]
CORE = "/api/v1/namespaces/kubeflow"
IMAGE = "registry.example.org/atelier@sha256:" + "0" * 64
SAID = {"what": "volume from a pod", "state": "good", "said": "writable"}
WELL: dict[str, Any] = {
    "/version/": {
        "gitVersion": "v1.34.9",
        "major": "1",
        "minor": "34",
        **dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"), ""),
    },
    f"{CORE}/configmaps/atelier-settings": {"data": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}},
    f"{CORE}/secrets/atelier-credentials": {},
    f"{CORE}/serviceaccounts/atelier-pipeline": {},
    f"{CORE}/persistentvolumeclaims/atelier-workspaces": {
        "spec": {"accessModes": ["ReadWriteMany"]},
        "status": {"phase": "Bound"},
    },
    f"{CORE}/configmaps/workflow-controller-configmap": {
        "data": {"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: OnError}}}"}
    },
    f"{CORE}/resourcequotas": {"items": [{"metadata": {"name": "q"}, "spec": {}, "status": {"hard": {"cpu": "8"}}}]},
    "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "2"}}}] * 2},
    "/apis/": {
        "groups": [
            {
                "name": name,
                "versions": [{"groupVersion": f"{name}/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": f"{name}/v1", "version": "v1"},
            }
            for name in ("trainer.kubeflow.org", "jobset.x-k8s.io", "kueue.x-k8s.io")
        ]
    },
    "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainingruntimes/atelier-torch": {},
    "/apis/kueue.x-k8s.io/v1/namespaces/kubeflow/localqueues/team": {},
    "/apis/kueue.x-k8s.io/v1/workloadpriorityclasses/night": {},
    "pod": {"phase": "Succeeded"},
}


@contextmanager
def cluster(objects: dict[str, Any]) -> Iterator[str]:
    """An API that has these objects, answers 403 where one is 403, and runs a pod to the state that `pod` says."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            path = self.path.split("?")[0]
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            if path.endswith("/subjectaccessreviews"):
                asked = body["spec"]["resourceAttributes"]["resource"]
                return self.send(201, body | {"status": {"allowed": asked not in objects.get("refused", ())}})
            if path.endswith("/log"):
                return self.send(200, f"other words\n{json.dumps(SAID)}\n")
            if "/pods" in path:
                if "message" in objects["pod"]:
                    return self.send(403, objects["pod"])
                started.append((self.command, path))
                container = {"name": "main", "image": IMAGE}
                return self.send(
                    201 if self.command == "POST" else 200,
                    {"metadata": {"name": "p"}, "spec": {"containers": [container]}, "status": objects["pod"]},
                )
            found = objects.get(path, 404)
            return self.send(found, {"message": "no"}) if isinstance(found, int) else self.send(200, found)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def send(self, status: int, answer: Any) -> None:
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    started: list[tuple[str, str]] = []
    with listening(Handler) as url:
        yield url
    if started:
        assert started[-1][0] == "DELETE", "the pod is left"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command on a cluster; its exit code and what it found."""
    monkeypatch.setattr(check, "STUCK_SECONDS", -1)

    def run(objects: dict[str, Any], *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
        with kubeflow_server() as pipelines, cluster(objects) as url:
            configuration = client.Configuration(host=url)
            configuration.retries = False
            monkeypatch.setattr(check, "api_client", lambda: client.ApiClient(configuration))
            command = ["pipeline", "check", "--host", pipelines.url, "--nodes", "2", "--gpus", "2", "--json", *options]
            command += ["--root", str(PROJECT), "--set", "cluster={queue: team, priority: night}"]
            monkeypatch.setattr("sys.argv", ["atelier", *command])
            code = int(main() or 0)
            assert not pipelines.refused
        listed = json.loads(capsys.readouterr().out)
        return code, {one["what"]: (one["state"], one["said"]) for one in listed}

    return run


def test_all_is_well(found: Callable[..., Any]) -> None:
    code, findings = found(WELL, "--image", IMAGE)
    assert code == 0, findings
    assert {state for state, _ in findings.values()} == {"good"}
    assert len(findings) == 13
    assert findings["volume from a pod"] == ("good", "writable")


WAITING = [
    {
        "name": "main",
        "image": "atelir",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
    }
]


SETTINGS, VOLUME = f"{CORE}/configmaps/atelier-settings", f"{CORE}/persistentvolumeclaims/atelier-workspaces"
CONTROLLER, ACCOUNT = f"{CORE}/configmaps/workflow-controller-configmap", f"{CORE}/serviceaccounts/atelier-pipeline"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainingruntimes/atelier-torch"
*TRAINER, KUEUE = WELL["/apis/"]["groups"]
ONE_NODE = {"spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}}
FULL = {"items": [{"metadata": {"name": "q"}, "status": {"hard": {"pods": "3"}, "used": {"pods": "3"}}}]}
NARROW = {"items": [{"metadata": {"name": "q"}, "spec": {}, "status": {"hard": {"cpu": "1"}}}]}


@pytest.mark.parametrize(
    ("path", "value", "what", "said"),
    [
        (SETTINGS, 404, "settings", "kubectl apply -k"),
        (SETTINGS, {"data": {"AWS_ENDPOINT_URL": "https://s3.example.org"}}, "settings", "an example"),
        (SETTINGS, {"data": {}}, "settings", "MLFLOW_TRACKING_URI is missing"),
        (f"{CORE}/secrets/atelier-credentials", 404, "credentials", "docs/kubeflow.md"),
        (VOLUME, ONE_NODE, "volume", "not ReadWriteMany"),
        (ACCOUNT, 404, "account", "ServiceAccount atelier-pipeline is not in"),
        ("refused", ("trainjobs",), "account", "may not create trainjobs"),
        (CONTROLLER, {"data": {}}, "controller", "retryPolicy is OnFailure"),
        (f"{CORE}/resourcequotas", NARROW, "quota", "allows 1 of cpu"),
        (f"{CORE}/resourcequotas", FULL, "quota", "allows 3 pods, and so many are there"),
        (
            "pod",
            {"message": 'pods "p" is forbidden: exceeded quota: q'},
            "image",
            '403 pods "p" is forbidden: exceeded',
        ),
        ("/api/v1/nodes", {"items": [{"status": {"allocatable": {}}}]}, "gpus", "0 on 1 nodes"),
        ("/apis/", {"groups": [KUEUE]}, "trainer", "Kubeflow Trainer is not installed"),
        ("/apis/", {"groups": [*TRAINER]}, "queue", "Kueue is not installed"),
        (RUNTIME, 404, "trainer", "TrainingRuntime"),
        ("/apis/kueue.x-k8s.io/v1/namespaces/kubeflow/localqueues/team", 404, "queue", "LocalQueue team is not there"),
        ("/apis/kueue.x-k8s.io/v1/workloadpriorityclasses/night", 404, "queue", "WorkloadPriorityClass night is not"),
        ("pod", {"phase": "Pending", "containerStatuses": WAITING}, "image", "ErrImagePull: not found"),
    ],
)
def test_a_fault_is_found(found: Callable[..., Any], path: str, value: Any, what: str, said: str) -> None:
    code, findings = found(copy.deepcopy(WELL) | {path: value}, "--image", IMAGE)
    assert code == 1
    assert [one for one, (state, _) in findings.items() if state == "bad"] == [what]
    assert said in findings[what][1]


def test_what_may_not_be_looked_at_is_no_fault(found: Callable[..., Any]) -> None:
    code, findings = found(WELL | {f"{CORE}/secrets/atelier-credentials": 403, "/api/v1/nodes": 403})
    assert code == 0
    assert [one for one, (state, _) in findings.items() if state == "unknown"] == ["credentials", "gpus"]


def test_no_right_to_make_a_pod_is_no_fault(found: Callable[..., Any]) -> None:
    refused = {"message": 'pods is forbidden: User "u" cannot create resource "pods" in API group ""'}
    code, findings = found(WELL | {"pod": refused}, "--image", IMAGE)
    assert code == 0
    assert findings["image"] == ("unknown", f"no pod can be started (403 {refused['message']})")


def test_a_pod_finds_a_volume_that_is_not_its_own_and_a_store_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "VOLUME_PATH", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert [finding.state for finding in check.inside()] == ["good", "good"]
    monkeypatch.setattr(check, "VOLUME_PATH", str(tmp_path / "not-there"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    findings = {finding.what: finding for finding in check.inside()}
    assert [finding.state for finding in findings.values()] == ["bad"] * 3
    assert "cannot be written by user" in findings["volume from a pod"].said

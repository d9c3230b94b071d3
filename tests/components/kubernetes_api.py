"""A Kubernetes API for tests: TrainJobs held to the real CRD schema, watches with events, and faults when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from jsonschema import Draft4Validator
from listening import listening

CRD = yaml.safe_load(
    (Path(__file__).parents[1] / "schemas" / "kubeflow-trainer" / "trainer.kubeflow.org_trainjobs.yaml").read_text()
)


def strict(schema: Any) -> Any:
    """An OpenAPI schema of a CRD as JSON schema: unknown fields are refused, and what may be a number or text is."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        changed.pop("type", None)
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        changed.setdefault("additionalProperties", False)
    return changed


SCHEMA = strict(CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
SCHEMA["properties"]["metadata"] = {"type": "object"}
VALIDATOR = Draft4Validator(SCHEMA)


class KubernetesApi:
    """What the cluster knows; a test plays the controllers through `condition` and `pods`.

    `faults` maps a kind of request (create, get, watch, delete, pods, log) to what happens to the next ones, in order:
    a status to answer with, "drop" to close the connection without an answer, "lost" to do it and close, None to
    behave; for a watch also "gone" to report 410, and "cut" to drop the connection after its first event; for a log
    "flow", which has no end.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.new_pods: dict[str, Any] = {"phase": "Succeeded"}  # state of those that a client makes
        self.logs: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.faults: dict[str, list[int | str | None]] = {}
        self.deletion_takes = 0  # requests for the job after which a deleted one is gone
        self.allowed = True  # what the review of rights says
        self.changed = threading.Condition()
        self.version = 0
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.url = ""
        self.stopping = False

    def record(self, kind: str, job: dict[str, Any]) -> None:
        with self.changed:
            self.version += 1
            job["metadata"]["resourceVersion"] = str(self.version)
            self.events.append((self.version, kind, json.loads(json.dumps(job))))
            self.changed.notify_all()

    def condition(self, name: str, kind: str, reason: str = "Told", message: str = "by the test") -> None:
        """Set a condition of a job, as its controller does."""
        now = "2026-01-01T00:00:00Z"
        new = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
        with self.changed:
            job = self.jobs[name]
            job["status"] = {"conditions": [new]}
            VALIDATOR.validate(job)
        self.record("MODIFIED", job)

    def trainer_status(self, name: str, status: dict[str, Any]) -> None:
        """Set what a job's training said of itself, as Trainer's status server does."""
        with self.changed:
            job = self.jobs[name]
            job.setdefault("status", {})["trainerStatus"] = status
            VALIDATOR.validate(job)
        self.record("MODIFIED", job)

    def remove(self, name: str) -> None:
        """Delete a job, as someone may."""
        with self.changed:
            job = self.jobs.pop(name)
        self.record("DELETED", job)

    def pod(self, name: str, job: str, phase: str, index: int, *lines: str) -> None:
        """Add a pod of a job, with a log."""
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(index)}
        metadata = {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.pods.append({"metadata": metadata, "status": {"phase": phase}, "spec": {"containers": []}})
        self.logs[name] = list(lines)

    def wait_for(self, kind: str, count: int = 1, seconds: float = 120) -> None:
        """Wait until `count` requests of a kind have come."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while sum(seen == kind for seen, _ in self.requests) < count:
                assert self.changed.wait(max(0, deadline - time.monotonic())), (kind, self.requests)


def _kind(method: str, path: str, query: dict[str, list[str]]) -> str:
    if "/pods" in path:
        return "log" if path.endswith("/log") else "pods"
    if path.endswith("/selfsubjectaccessreviews"):
        return "review"
    if method == "POST":
        return "create"
    if method == "DELETE":
        return "delete"
    return "watch" if "watch" in query else "get" if path.rsplit("/", 1)[-1] != "trainjobs" else "list"


@contextmanager
def kubernetes_api() -> Iterator[KubernetesApi]:
    """Run the API on a free port of 127.0.0.1."""
    api = KubernetesApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            address = urlsplit(self.path)
            query = parse_qs(address.query)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind, name = _kind(self.command, address.path, query), address.path.rsplit("/", 1)[-1]
            with api.changed:
                api.requests.append((kind, address.path))
                api.changed.notify_all()
                fault = (api.faults.get(kind) or [None]).pop(0)
            if fault == "drop":
                self.close_connection = True
                return None
            if isinstance(fault, int):
                return self.status(fault, "told to")
            if kind == "create":
                return self.create(json.loads(raw), fault == "lost")
            if kind == "watch":
                return self.watch(query, fault)
            if kind == "pods":
                return self.list_pods(query) if name == "pods" and self.command == "GET" else self.pod(name, raw)
            if kind == "log":
                return self.flow() if fault == "flow" else self.log(address.path.split("/")[-2], query)
            if kind == "review":
                return self.send(201, json.loads(raw) | {"status": {"allowed": api.allowed}})
            if kind == "list":
                return self.list_jobs(query)
            if name not in api.jobs:
                return self.status(404, f'trainjobs "{name}" not found')
            job = api.jobs[name]
            if kind == "delete":
                assert query["propagationPolicy"] == ["Foreground"]
                # what has dependents stays until those are gone
                job["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
                api.record("MODIFIED", job)
            if "deletionTimestamp" in job["metadata"]:
                if api.deletion_takes <= 0:
                    api.remove(name)
                api.deletion_takes -= 1
            return self.status(200, "deleted") if kind == "delete" else self.send(200, job)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def create(self, job: dict[str, Any], lost: bool) -> None:
            wrong = [f"{list(error.path)}: {error.message}" for error in VALIDATOR.iter_errors(job)]
            if wrong:
                return self.status(422, "; ".join(wrong))
            name = job["metadata"]["name"]
            if name in api.jobs:
                return self.status(409, f'trainjobs "{name}" already exists')
            api.jobs[name] = job
            api.created.append(job)
            api.record("ADDED", job)
            if lost:
                self.close_connection = True
                return None
            return self.send(201, job)

        def list_jobs(self, query: dict[str, list[str]]) -> None:
            wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part)
            items = [job for job in api.jobs.values() if wanted.items() <= job["metadata"].get("labels", {}).items()]
            self.send(200, {"kind": "TrainJobList", "apiVersion": "v1", "metadata": {}, "items": items})

        def watch(self, query: dict[str, list[str]], fault: int | str | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if fault == "gone":
                self.chunk(
                    {
                        "type": "ERROR",
                        "object": {
                            "kind": "Status",
                            "code": 410,
                            "reason": "Expired",
                            "message": "too old resource version",
                        },
                    }
                )
                return self.end_chunks()
            seen = int(query["resourceVersion"][0])
            name = query["fieldSelector"][0].removeprefix("metadata.name=")
            deadline = time.monotonic() + min(float(query["timeoutSeconds"][0]), 5)
            while not api.stopping and time.monotonic() < deadline:
                with api.changed:
                    new = [event for event in api.events if event[0] > seen and event[2]["metadata"]["name"] == name]
                    if not new:
                        api.changed.wait(0.1)
                for number, kind, job in new:
                    seen = number
                    self.chunk({"type": kind, "object": job})
                    if fault == "cut":
                        self.close_connection = True
                        return None
            return self.end_chunks()

        def list_pods(self, query: dict[str, list[str]]) -> None:
            wanted = dict(part.split("=") for part in query["labelSelector"][0].split(","))
            items = [pod for pod in api.pods if wanted.items() <= pod["metadata"]["labels"].items()]
            self.send(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

        def pod(self, name: str, raw: bytes) -> None:
            """Make, give or remove one pod; its state is what `new_pods` says."""
            if self.command == "POST":
                made = json.loads(raw)
                api.pods.append(made | {"status": api.new_pods})
                return self.send(201, api.pods[-1])
            found = next((pod for pod in api.pods if pod["metadata"]["name"] == name), None)
            if found is None:
                return self.status(404, f'pods "{name}" not found')
            if self.command == "DELETE":
                api.pods.remove(found)
            return self.send(200, found)

        def log(self, pod: str, query: dict[str, list[str]]) -> None:
            lines = api.logs[pod]
            if "tailLines" in query:
                lines = lines[-int(query["tailLines"][0]) :]
            if "timestamps" in query:
                lines = [f"2026-01-01T00:00:{number:02d}.0Z {line}" for number, line in enumerate(lines)]
            self.send(200, "".join(f"{line}\n" for line in lines))

        def flow(self) -> None:
            """A log that goes on and on."""
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while not api.stopping:
                line = b"2026-01-01T00:00:00.0Z more\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                time.sleep(0.05)

        def chunk(self, event: dict[str, Any]) -> None:
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def end_chunks(self) -> None:
            self.wfile.write(b"0\r\n\r\n")

        def status(self, code: int, message: str) -> None:
            self.send(code, {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "status": ""})

        def send(self, code: int, answer: Any) -> None:
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as api.url:
        try:
            yield api
        finally:
            api.stopping = True

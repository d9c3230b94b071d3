"""A Kubeflow Pipelines server for tests: refuses what the official Swagger refuses, and misbehaves when told to."""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from jsonschema import Draft4Validator, FormatChecker
from kfp.pipeline_spec import pipeline_spec_pb2
from listening import listening

SWAGGER = json.loads(
    (Path(__file__).parents[1] / "schemas" / "kubeflow-pipelines" / "kfp_api_single_file.swagger.json").read_text()
)
NUMBER = {"integer": r"-?\d+", "boolean": "true|false"}


def strict(definitions: dict[str, Any]) -> dict[str, Any]:
    """As the server reads them: a field that is not in the definition is refused."""
    return {
        name: definition | ({"additionalProperties": False} if "properties" in definition else {})
        for name, definition in definitions.items()
    }


DEFINITIONS = strict(SWAGGER["definitions"])


def problems(method: str, path: str, query: dict[str, list[str]], body: Any) -> list[str]:
    """What the Swagger has against a request."""
    for template, operations in SWAGGER["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/:]+", template), path) and method.lower() in operations:
            parameters = operations[method.lower()].get("parameters", [])
            break
    else:
        return [f"no {method} {path}"]
    known = {parameter["name"]: parameter for parameter in parameters}
    found = [f"query {name} is not known" for name in query if known.get(name, {}).get("in") != "query"]
    found += [
        f"query {name}={value}"
        for name, values in query.items()
        for value in values
        if name in known and not re.fullmatch(NUMBER.get(known[name].get("type", ""), ".*"), value)
    ]
    for parameter in parameters:
        if parameter["in"] == "body":
            schema = parameter["schema"] | {"definitions": DEFINITIONS}
            validator = Draft4Validator(schema, format_checker=FormatChecker())
            found += [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(body)]
        if parameter["in"] == "formData" and parameter.get("required") and body is None:
            found.append(f"{parameter['name']} is missing")
    return found


class KubeflowServer:
    """What a server knows, and what it shall do wrong.

    `faults` maps (method, kind) to what happens to the next requests of that kind, in order: a status to answer with
    and do nothing, "lost" to do what is asked and drop the connection, "slow" to answer too late.
    """

    def __init__(self) -> None:
        self.things: dict[str, dict[str, Any]] = defaultdict(dict)
        self.lost: list[dict[str, Any]] = []  # runs whose workflow was removed
        self.requests: list[tuple[str, str, Any]] = []
        self.refused: list[list[str]] = []
        self.faults: dict[tuple[str, str], list[int | str]] = {}
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.tasks: list[dict[str, Any]] = []  # of every run
        self.on_change: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self.token: str | None = None
        self.count = 0
        self.url = ""
        self.handler: type[BaseHTTPRequestHandler] = BaseHTTPRequestHandler
        self.released = threading.Event()

    def made(self, kind: str) -> list[Any]:
        return list(self.things[kind].values())

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Do what a request asks."""
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        kind = parts[0]
        if method == "GET":
            if kind == "runs" and len(parts) == 2:
                if (run := self.things["runs"].get(parts[1])) is None:
                    return 404, {"message": f"Run {parts[1]} not found"}
                run["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                return 200, run | {"run_details": {"task_details": self.tasks}}
            if len(parts) == 3:
                kind = "versions"
            wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"] if "filter" in query else None
            found = [one for one in self.made(kind) if wanted in (None, one["display_name"])]
            # small pages, so that whoever reads the first alone is found out
            start = int(query.get("page_token", ["0"])[0] or 0)
            field = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}.get(kind, kind)
            page = {field: found[start : start + 1], "total_size": len(found)}
            return 200, page | ({"next_page_token": str(start + 1)} if start + 1 < len(found) else {})
        if method == "DELETE":
            if self.things[kind].pop(parts[1], None) is None:
                return 404, {"message": f"{parts[1]} not found"}
            # the workflow of a run belongs to its schedule, and goes with it
            self.lost += [one for one in self.made("runs") if one.get("recurring_run_id") == parts[1]]
            self.on_change()
            return 200, {}
        if kind == "recurringruns" and parts[-1].endswith(":disable"):
            self.things[kind][parts[1].partition(":")[0]]["status"] = "DISABLED"
            return 200, {}
        if action := re.fullmatch(r"([^:]+):(terminate|retry)", parts[-1]):
            if action[1] not in self.things["runs"]:
                return 404, {"message": f"Run {action[1]} not found"}
            self.states = ["CANCELING", "FAILED"] if action[2] == "terminate" else ["RUNNING", "SUCCEEDED"]
            return 200, {}
        self.count += 1
        identity = f"{kind}-{self.count}"
        if kind == "pipelines" and parts[1:]:
            spec, *_ = yaml.safe_load_all(body)
            json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
            body = {"display_name": query["name"][0]}
            if "pipelineid" in query:
                kind, body = "versions", body | {"pipeline_id": query["pipelineid"][0]}
            else:  # the server makes a version of it, too
                self.things["versions"][f"version-of-{identity}"] = body | {"pipeline_id": identity}
        singular = {"versions": "pipeline_version", "recurringruns": "recurring_run"}.get(kind, kind.rstrip("s"))
        thing = body | {f"{singular}_id": identity, "state": "PENDING"}
        if kind == "recurringruns":
            thing["status"] = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
            del thing["state"]
        self.things[kind][identity] = thing
        self.on_change()
        return 200, thing


@contextmanager
def kubeflow_server() -> Iterator[KubeflowServer]:
    """Run a server on a free port of 127.0.0.1."""
    server = KubeflowServer()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            address = urlsplit(self.path)
            query = parse_qs(address.query, keep_blank_values=True)
            query = {name: values for name, values in query.items() if values != [""]}
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = self.body(raw)
            kind = address.path.split("/")[3]
            with server.lock:
                server.requests.append((self.command, address.path, body))
                fault = (server.faults.get((self.command, kind)) or [None]).pop(0)
                if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                    return self.send(401, {"message": "Unauthenticated"})
                if isinstance(fault, int):
                    return self.send(fault, {"message": "told to"})
                if wrong := problems(self.command, address.path, query, body):
                    server.refused.append(wrong)
                    return self.send(400, {"message": "; ".join(wrong)})
                if fault == "slow":
                    server.lock.release()
                    server.released.wait(30)
                    server.lock.acquire()
                    return None
                status, answer = server.answer(self.command, address.path, query, body)
            if fault == "lost":
                self.close_connection = True
                return None
            return self.send(status, answer)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def body(self, raw: bytes) -> Any:
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/"):
                message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
                (part,) = message.get_payload()
                assert part.get_param("name", header="Content-Disposition") == "uploadfile"
                return part.get_payload(decode=True)
            return json.loads(raw) if raw else None

        def send(self, status: int, answer: Any) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server.handler = Handler
    with listening(Handler) as server.url:
        try:
            yield server
        finally:
            server.released.set()

"""Servers that answer as no honest one does: Kubeflow, MLflow, S3, and whatever files are downloaded from."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from hostile.damages import DEEP, ESCAPES, HTML, changed

from atelier.processes import end_with
from ports import free_port

RUN_ID = "11111111-2222-3333-4444-555555555555"  # of the only run on Kubeflow's server


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """An HTTP answer as bytes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def hostile_answer(good: bytes, kind: str, chance: Random, home: str, large: int) -> tuple[bytes, str]:
    """An answer in the place of an honest one.

    Args:
        good: the body of the honest one.
        kind: its type.
        chance: decides.
        home: the address of the server.
        large: bytes of an answer that is too large.
    """
    header = f"Content-Type: {kind}"

    def of_type(body: bytes, *more: str, length: int | None = None) -> bytes:
        return answer("200 OK", body, header, *more, length=length)

    if kind.endswith("json") and chance.random() < 0.5:
        text, what = changed(json.loads(good), chance)
        return of_type(text.encode("utf-8", "surrogatepass")), what
    bomb = b'<!DOCTYPE x [<!ENTITY a "' + b"x" * 1000 + b'">'
    bomb += b"".join(b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 20) for c in b"bcdefgh") + b"]><x>&h;</x>"
    answers = {
        "HTML": answer("200 OK", HTML, "Content-Type: text/html"),
        "HTML that calls itself right": of_type(HTML),
        "nothing": of_type(b""),
        "cut": of_type(good[: chance.randrange(len(good))]),
        "garbage": of_type(chance.randbytes(300)),
        "a length of 10^9": of_type(good, length=10**9),
        "a negative length": of_type(good, length=-1),
        "a length that is a word": answer("200 OK", good, header).replace(b"Content-Length: ", b"Content-Length: x"),
        "redirect to a file": answer("302 Found", b"", "Location: file:///etc/passwd"),
        "redirect to itself": answer("302 Found", b"", f"Location: {home}/again"),
        "redirect to nothing": answer("302 Found", b"", "Location: http://"),
        "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(50),
        "no answer": b"",
        "a status of 9 digits": answer("123456789 What", b"", header),
        "a header of 100,000 letters": of_type(good, "X-Long: " + "x" * 100_000),
        "300 headers": of_type(good, *(f"X-{n}: x" for n in range(300))),
        "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + good,
        "broken gzip": of_type(b"\x1f\x8b\x08" + chance.randbytes(100), "Content-Encoding: gzip"),
        "a gzip bomb": of_type(gzip.compress(bytes(large), 1), "Content-Encoding: gzip"),
        "UTF-16": of_type(good.decode("latin-1").encode("utf-16")),
        "escape sequences": answer("400 Bad\x1b[2J", ESCAPES.encode(), header),
        "401": answer("401 Unauthorized", HTML, 'WWW-Authenticate: Basic realm="x"'),
        "403 with escape sequences": answer("403 Forbidden", json.dumps({"message": ESCAPES}).encode(), header),
        "404": answer("404 Not Found", b"<h1>Not Found</h1>", "Content-Type: text/html"),
        "404 as a list": answer("404 Not Found", b"[1]", header),
        "418": answer("418 I'm a teapot", b"", header),
        "too large": of_type(b"[" + b"1," * (large // 2)),
        "nested": of_type(b"[" * DEEP),
        "XML with entities of entities": of_type(bomb),
        "NaN": of_type(b"NaN"),
        "null": of_type(b"null"),
        "a number": of_type(b"1"),
        "a list": of_type(b"[null]"),
    }
    what = chance.choice(list(answers))
    return answers[what], what


class Server:
    """Answers honestly, but for one answer of a try.

    Args:
        state: the workspace that there is to serve.
    """

    def __init__(self, state: Path) -> None:
        self.state, self.upstream, self.upstream_answers = state, "", False
        self.kind, self.number, self.damage = "", 0, Random()
        self.count, self.did, self.lock = 0, "", threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with outer.lock:
                    said = outer.reply(self.command, self.path, body)
                with contextlib.suppress(OSError):
                    self.wfile.write(said)

            do_GET = do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.home = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def large(self) -> int:
        """Clients hold an answer several times over; MLflow's guesses its charset, which takes a minute for 300 MB."""
        return {"mlflow": 8_000_000, "s3": 50_000_000}.get(self.kind, 300_000_000)

    def begin(self, kind: str, number: int, damage: Random) -> None:
        """From now on answer number `number`, counted from 1, is damaged; 0: none."""
        self.kind, self.number, self.damage, self.count, self.did = kind, number, damage, 0, ""

    def reply(self, method: str, path: str, body: bytes) -> bytes:
        """What to answer, as bytes."""
        self.count += 1
        if self.kind == "download":
            good, kind = b"\x1f\x8b" + bytes(400), "application/gzip"
        else:
            honest = {"kubeflow": self.kubeflow, "mlflow": self.mlflow, "s3": self.s3}[self.kind](method, path, body)
            if isinstance(honest, bytes):
                return honest
            good, kind = honest
        # a server that does not like what it is asked says so each time
        if self.number and self.count >= self.number and good:
            made, self.did = hostile_answer(good, kind, Random(self.damage.random()), self.home, self.large)
            if self.count > self.number:
                self.did = f"{self.did}, and more"
            return made
        return answer("200 OK", good, f"Content-Type: {kind}")

    def kubeflow(self, method: str, path: str, body: bytes) -> tuple[bytes, str]:
        """Kubeflow Pipelines."""
        moment = "2026-11-01T00:00:00Z"
        run = {
            "run_id": RUN_ID,
            "display_name": "one",
            "state": "SUCCEEDED",
            "created_at": moment,
            "run_details": {
                "task_details": [
                    {
                        "task_id": "t",
                        "display_name": "ingest",
                        "state": "SUCCEEDED",
                        "start_time": moment,
                        "end_time": moment,
                    }
                ]
            },
        }
        recurring = {
            "recurring_run_id": RUN_ID,
            "display_name": "nightly",
            "status": "ENABLED",
            "max_concurrency": "1",
            "description": "atelier schedule " + "0" * 64,
            "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}},
        }
        place = path.partition("?")[0].removeprefix("/apis/v2beta1/")
        documents: dict[str, Any] = {
            "experiments": {"experiments": [{"experiment_id": "e", "display_name": "atelier"}]},
            "runs": {"runs": [run]},
            f"runs/{RUN_ID}": run,
            "recurringruns": {"recurringRuns": [recurring]},
        }
        return json.dumps(documents.get(place, {})).encode(), "application/json"

    def mlflow(self, method: str, path: str, body: bytes) -> tuple[bytes, str] | bytes:
        """A real MLflow, which this one stands before."""
        if not self.upstream_answers:
            wait_for(f"{self.upstream}/health")
            self.upstream_answers = True
        request = urllib.request.Request(
            self.upstream + path, body or None, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                return found.read(), found.headers.get_content_type()
        except urllib.error.HTTPError as error:
            return answer(f"{error.code} x", error.read(), "Content-Type: application/json")

    def s3(self, method: str, path: str, body: bytes) -> tuple[bytes, str] | bytes:
        """One archive in one bucket."""
        data = (self.state / "sources" / "pictures.zip").read_bytes()
        tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if "list-type=2" in path:
            item = f"<Key>pictures.zip</Key><Size>{len(data)}</Size><ETag>{tag}</ETag>"
            item = f"<Contents>{item}<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            text = f"<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount>{item}</ListBucketResult>"
            return text.encode(), "application/xml"
        if method == "HEAD":
            return answer("200 OK", b"", f"ETag: {tag}", length=len(data))
        return data, "binary/octet-stream"


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.2)


@contextlib.contextmanager
def real_mlflow(state: Path, folder: Path) -> Iterator[str]:
    """A real MLflow server, which a hostile one stands in front of, on a copy of the workspace's store."""
    folder.mkdir(exist_ok=True)
    shutil.copy(state / "mlflow.db", folder)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}"]
    with (folder / "log").open("w") as log:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

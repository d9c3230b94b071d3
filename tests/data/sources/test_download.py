"""Downloads against a real HTTP server that breaks, lies and refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from atelier import processes
from atelier.data.sources import download
from atelier.data.sources.download import fetch
from atelier.errors import AtelierError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`; each entry of `plan` spoils one request: "cut" half-way, or answer with a status."""

    plan: list[str | int]
    ranges: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        step = self.server.plan.pop(0) if self.server.plan else "whole"
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if isinstance(step, int):
            self.send_error(step)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and step != "no-ranges" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if step == "cut" else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "DELAYS_SECONDS", (0.01, 0.01, 0.01))
    server = Server(("127.0.0.1", 0), Handler)
    server.plan, server.ranges = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, target: Path, limit_bytes: int = 10_000_000) -> None:
    fetch(f"http://127.0.0.1:{server.server_port}/file", target, limit_bytes, timeout_seconds=5)


def test_a_transfer_that_breaks_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "cut"]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1500000-", "bytes=2250000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_later_run_goes_on_from_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut"] + [503] * 3
    with pytest.raises(AtelierError, match="HTTP 503 Service Unavailable; try again later"):
        get(server, tmp_path / "file")
    get(server, tmp_path / "file")
    assert server.ranges[-1] == "bytes=1500000-"
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "no-ranges"]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_does_not_fit_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(bytes(4_000_000))
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_moment_of_trouble_is_waited_out_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.plan = [503, 429]
    get(server, tmp_path / "file")
    assert len(server.ranges) == 3
    server.plan = [404]
    with pytest.raises(AtelierError, match="404"):
        get(server, tmp_path / "other")
    assert len(server.ranges) == 4


def test_more_than_was_announced_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match="larger than the 1000 bytes expected"):
        get(server, tmp_path / "file", limit_bytes=1000)
    assert not (tmp_path / "file").exists()


def test_a_host_that_is_not_there_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(AtelierError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", 1000, timeout_seconds=5)

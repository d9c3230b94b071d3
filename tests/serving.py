"""`mlflow models serve`, started and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from ports import free_port


@contextmanager
def serving(root: Path, uri: str, environment: dict[str, str], *options: str) -> Iterator[str]:
    """The address of a server of a version in the store of a workspace, once it answers."""
    port, said = free_port(), root / "server.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, *options]
    with said.open("w") as log:
        process = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}", "--workers=1"],
            env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, said.read_text()[-2000:]
            try:
                requests.get(f"{url}/ping", timeout=60).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # its own session: it and its workers
        process.wait()

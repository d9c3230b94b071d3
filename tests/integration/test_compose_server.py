"""MLflow as compose.yaml starts it, before a real database: nobody reads or writes there without a password."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
import yaml

from ports import free_port

PROJECT = Path(__file__).parents[2]
VALUES = dict.fromkeys(("POSTGRES_PASSWORD", "S3_SECRET", "MLFLOW_PASSWORD", "FLASK_SECRET"), "of-this-test")
postgres = runpy.run_path(str(PROJECT / "deploy" / "server.py"))["postgres"]
pytestmark = pytest.mark.processes


def test_mlflow_asks_for_a_password(environment: dict[str, str], tmp_path: Path) -> None:
    service = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]["mlflow"]
    ours = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: VALUES[m[1]], value)
        for name, value in service["environment"].items()
    }
    (mount,) = service["volumes"]
    file, inside, _ = mount.split(":")
    assert ours["MLFLOW_AUTH_CONFIG_PATH"] == inside
    ours["MLFLOW_AUTH_CONFIG_PATH"] = str(PROJECT / file)
    port = free_port()
    there = {"0.0.0.0": "127.0.0.1", "5000": str(port)}
    command = [there.get(word, word) for word in service["entrypoint"]]
    ours["MLFLOW_SERVER_ALLOWED_HOSTS"] = ours["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("5000", str(port))
    # not below pytest's folder, which PostgreSQL's own user may not enter
    with tempfile.TemporaryDirectory(prefix="atelier-compose-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder), VALUES["POSTGRES_PASSWORD"]) as uri:
            where = urlsplit(uri("mlflow"))
            with psycopg.connect(uri("mlflow"), autocommit=True) as connection:
                connection.execute("CREATE ROLE mlflow SUPERUSER LOGIN PASSWORD 'of-this-test'")
            # the host 'postgres' of compose.yaml
            ours |= {"PGHOSTADDR": str(where.hostname), "PGPORT": str(where.port)}
            with (tmp_path / "log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", *command, "--workers=1"],
                    env=environment | ours,
                    cwd=tmp_path,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                address = f"http://localhost:{port}"
                while True:
                    assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                    try:
                        requests.get(f"{address}/health", timeout=60).raise_for_status()
                        break
                    except requests.RequestException:
                        time.sleep(0.2)
                search = f"{address}/api/2.0/mlflow/registered-models/search"
                artifact = f"{address}/api/2.0/mlflow-artifacts/artifacts/x"
                for path in (search, artifact):
                    assert requests.get(path, timeout=60).status_code == 401
                assert requests.put(artifact, data=b"x", timeout=60).status_code == 401
                assert requests.get(search, auth=("admin", "of-this-test"), timeout=60).status_code == 200
            finally:
                os.killpg(process.pid, 9)  # its own session: it and its workers
                process.wait()

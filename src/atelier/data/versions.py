"""Raw data by version, where there is no checkout: out of a DVC remote as dvc.lock says, or into one."""

import os
import re
import sys
from pathlib import Path

from atelier.data.arrays import dvc_md5
from atelier.errors import InputError
from atelier.processes import run

COMMIT = re.compile(r"[0-9a-f]{40}")


def pull(dataset: str, repository: str, revision: str, remote: str, root: Path) -> None:
    """Write `data/raw/DATASET/` as the dvc.lock of a commit has it.

    Args:
        dataset: its name.
        repository: of git, as `git clone` takes it.
        revision: a full commit.
        remote: URL of the DVC remote; that of the repository's configuration if empty.
        root: the workspace.

    Raises:
        InputError: if the revision is no full commit: what a branch means changes, and Kubeflow's cache would take
            its old data for its new.
        AtelierError: if DVC cannot get it.
    """
    if not COMMIT.fullmatch(revision):
        raise InputError(f"revision '{revision}': give all 40 letters of the commit, as 'git rev-parse HEAD' prints it")
    target = root / "data" / "raw" / dataset
    target.parent.mkdir(parents=True, exist_ok=True)
    options = ["--remote-config", f"url={remote}", *_endpoint(remote)] if remote else []
    _dvc(root, "get", repository, f"data/raw/{dataset}", "--rev", revision, "--out", str(target), *options)


def push(dataset: str, remote: str, root: Path) -> str:
    """Put `data/raw/DATASET/` of a workspace into a DVC remote; returns the digest it is kept under, as in dvc.lock.

    Raises:
        AtelierError: if DVC cannot put it there.
    """
    _dvc(root, "init", "--no-scm", "--force", "--quiet")
    _dvc(root, "remote", "add", "--default", "--force", "versions", remote)
    for option in _endpoint(remote):
        _dvc(root, "remote", "modify", "versions", *option.split("=", 1))
    _dvc(root, "add", "--quiet", f"data/raw/{dataset}")
    _dvc(root, "push", "--quiet", f"data/raw/{dataset}")
    return dvc_md5(root / "data" / "raw" / dataset)


def _endpoint(remote: str) -> list[str]:
    """DVC takes the address of S3 from its configuration, not from the environment."""
    address = os.environ.get("AWS_ENDPOINT_URL")
    return [f"endpointurl={address}"] if address and remote.startswith("s3://") else []


def _dvc(root: Path, *arguments: str) -> None:
    run([sys.executable, "-m", "dvc", *arguments], what=f"dvc {arguments[0]} {arguments[1]}", cwd=root)

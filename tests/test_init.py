"""`atelier init`: what it shares with this repository has one source, and nothing is overwritten."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atelier.init
from atelier.cli import main
from atelier.config import load_params
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import InputError
from atelier.files import folder_digest
from atelier.init import AS_THEY_ARE, FILES, init, render
from own_pictures import picture, write_pictures

PROJECT = Path(__file__).parents[1]


def test_this_repository_is_a_workspace_whose_code_is_watched(tmp_path: Path) -> None:
    init(tmp_path / "made", "mnist", None, is_git=False)
    plots = [name for name in (*FILES, *AS_THEY_ARE) if name.startswith(".dvc/plots")]
    assert len(plots) == 4
    for name in ("params.yaml", ".dvcignore", ".dvc/.gitignore", *plots):
        assert (tmp_path / "made" / name).read_text() == (PROJECT / name).read_text(), f"{name}: edit its template too"
    watched = render("dvc.yaml.j2", {"has_code": True})
    assert (PROJECT / "dvc.yaml").read_text() == watched, "dvc.yaml: edit its template in src/atelier/templates/ too"
    assert (tmp_path / "made" / "dvc.yaml").read_text() == render("dvc.yaml.j2", {"has_code": False})


@pytest.mark.parametrize("name", sorted([*FILES, *AS_THEY_ARE]))
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = folder_digest(tmp_path)
    with pytest.raises(InputError, match=f"{name}: exists, and nothing is overwritten"):
        init(tmp_path, "mnist", None, is_git=True)
    assert folder_digest(tmp_path) == before
    assert not (tmp_path / ".git").exists()


def test_a_folder_that_holds_other_files_becomes_a_workspace_of_its_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    pictures = write_pictures(tmp_path / "work" / "pets")
    init(tmp_path / "work", str(pictures), "cvae", is_git=True)
    assert not (tmp_path / "work" / ".git").exists()
    params = load_params(tmp_path / "work" / "params.yaml")
    assert params.ingest.paths == {"pets": "pets"}  # relative: the workspace can be moved
    assert list(params.runs) == ["pets-cvae"]
    assert params.promote.better == ["fd_classifier"]


def test_without_git_dvc_is_told(tmp_path: Path, environment: dict[str, str]) -> None:
    init(tmp_path / "work", "pokemon", None, is_git=False)
    assert not (tmp_path / "work" / ".git").exists()
    status = [sys.executable, "-m", "dvc", "status", "--quiet", "compare"]
    result = subprocess.run(status, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr  # there is something to run
    params = load_params(tmp_path / "work" / "params.yaml")
    assert (params.promote.at_most, params.promote.better) == ({}, ["fd_lite0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnst"], "--dataset mnst: no such folder, and not published; did you mean 'mnist'?"),
        (["--model", "cgn"], "--model cgn: unknown; did you mean 'cgan'?"),
        (["--model", "dcgan"], "model 'dcgan' needs an image side that is a multiple of 8"),
        (["--dataset", "empty"], "holds no picture that can be read"),
        (["--dataset", "."], "the workspace would lie among the pictures"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["atelier", "init", "work", *arguments])
    assert main() == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "work").exists()


def nested(folder: Path) -> Path:
    for number in range(24):
        path = folder / "all" / ("test" if number < 4 else "train") / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def grey(folder: Path) -> Path:
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(picture(number, side=100, mode="L"))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (write_pictures, {"side": 32, "channels": 3, "classes": ["cat", "dog"]}),
        (nested, {"side": 32, "channels": 3, "classes": ["cat", "dog"], "split": "folders"}),
        (grey, {"side": 64, "channels": 1}),
    ],
)
def test_the_first_look_gives_what_prepare_takes(tmp_path: Path, make: Any, settings: dict[str, Any]) -> None:
    pictures = make(tmp_path / "2026, new pictures")
    init(tmp_path / "work", str(pictures), "cgan", is_git=False)
    params = load_params(tmp_path / "work" / "params.yaml")
    assert params.prepare.sets["my-2026-new-pictures"].model_dump(exclude_none=True) == settings
    ingest("my-2026-new-pictures", params, tmp_path / "work", print)
    prepare("my-2026-new-pictures", params, tmp_path / "work")


@pytest.mark.processes
def test_a_demo_runs_the_pipeline_of_a_new_workspace(tmp_path: Path, environment: dict[str, str]) -> None:
    pictures = write_pictures(tmp_path / "pets", count=20)
    for number in range(10):
        (pictures / "cat" / f"bad-{number}.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "atelier", "demo", "work", "--dataset", str(pictures)]
    nothing_on_path = environment | {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, cwd=tmp_path, env=nothing_on_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pictures would be left out" in result.stderr  # what `prepare` says
    assert "work: dvc repro ended with" in result.stderr.splitlines()[-1]
    assert (tmp_path / "work" / "data" / "raw" / "pets" / "pictures.zip").is_file()


def test_an_upgrade_keeps_what_was_changed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later version, by the one line that each version changes and a template that says something else."""
    work = tmp_path / "work"
    init(work, "mnist", None, is_git=False)
    monkeypatch.setattr("sys.argv", ["atelier", "upgrade", str(work)])
    assert main() is None
    assert capsys.readouterr().err == f"{work}: is as this version writes it\n"

    templates = tmp_path / "later"
    shutil.copytree(Path(atelier.init.__file__).parent, templates, ignore=shutil.ignore_patterns("*.py", "docs"))
    ignored = templates / "templates" / "gitignore.j2"
    ignored.write_text(ignored.read_text() + "/later\n")
    (templates / "templates" / "plots.html").write_text("later {plot_divs}\n")
    monkeypatch.setattr(atelier.init, "PACKAGE", templates)
    monkeypatch.setattr(atelier, "__version__", "99.0")
    params, requirements = work / "params.yaml", work / "requirements.txt"
    params.write_text(params.read_text() + "# ours\n")
    (work / ".gitignore").write_text("/ours\n" + (work / ".gitignore").read_text())
    before = folder_digest(work)
    assert main() is None
    told = capsys.readouterr()
    assert "+++ .gitignore\n" in told.out
    assert "\n+/later\n" in told.out
    assert told.out.endswith(".dvc/plots.html: that of this version\n")
    assert "99.0" in told.out
    assert told.err == f"{work}: would change; --apply writes it\n"
    assert folder_digest(work) == before

    monkeypatch.setattr("sys.argv", ["atelier", "upgrade", str(work), "--apply"])
    assert main() is None
    assert (work / ".gitignore").read_text().startswith("/ours\n")
    assert (work / ".gitignore").read_text().endswith("/later\n")
    assert params.read_text().endswith("# ours\n")
    assert (work / ".dvc" / "plots.html").read_text() == "later {plot_divs}\n"
    assert "99.0" in requirements.read_text()
    capsys.readouterr()
    assert main() is None
    assert capsys.readouterr().out == ""


def test_an_upgrade_leaves_lines_that_both_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    init(work, "mnist", None, is_git=False)
    (work / "requirements.txt").write_text("ours\n")
    monkeypatch.setattr(atelier, "__version__", "99.0")
    monkeypatch.setattr("sys.argv", ["atelier", "upgrade", str(work), "--apply"])
    for _ in range(2):  # it is told again, and not taken for done
        assert main() == 1
        assert "requirements.txt: changed or removed here and by this version" in capsys.readouterr().err
    assert (work / "requirements.txt").read_text() == "ours\n"
    (work / ".atelier.json").unlink()
    assert main() == 2
    assert f"{work}/.atelier.json: missing; run 'atelier init' first" in capsys.readouterr().err

"""The wheel as people install it: without a clone, without an extra, in a workspace that `atelier init` wrote."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atelier.files import read_json
from atelier.registry.wheel import write_wheel
from own_pictures import write_pictures
from small_models import write_model

PROJECT = Path(__file__).parents[1]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
BUILD = "import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
# seconds instead of minutes
SMALL = {
    "kimg": "0.4, batch: 20, width: 8",
    "classifier_kimg": "1",
    "samples": "100",
    "draws": "2",
    "manifold_samples": "0",
    "memorisation_samples": "0",
    "accuracy_kimg": "0",
    "tick_kimg": "0.2",
    "pictures": "2",
}

pytestmark = pytest.mark.processes


def build(kind: str, source: Path, target: Path) -> Path:
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(target)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves files among the sources."""
    folder = tmp_path_factory.mktemp("sources")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if os.path.lexists(PROJECT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name, follow_symlinks=False)
    return build("sdist", folder, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), tmp_path_factory.mktemp("wheel"))


def needed(requirements: list[str]) -> set[str]:
    """The distributions that pip would install for these, of those that are here."""
    found, waiting = set[str](), [Requirement(one) for one in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            declared = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        seen = name in found
        found.add(name)
        for one in map(Requirement, declared):
            extras = requirement.extras if one.marker and "extra" in str(one.marker) else [""]
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
                waiting += [one] if not seen or extras != [""] else []
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has the wheel, and of all other packages those that its core declares."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "packages").mkdir()
    for name in needed(DECLARED["dependencies"]):
        one = distribution(name)
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / "packages" / top
            if not link.is_symlink():
                link.symlink_to(Path(str(one.locate_file(top))))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    there = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, str(wheel)], env=there, check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "core.pth").write_text(f"{folder / 'packages'}\n")
    if there.pop("PYTHONDONTWRITEBYTECODE", ""):  # each of ten processes would compile all packages anew
        there["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    return there | {"PATH": f"{python.parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}


def call(environment: dict[str, str], *command: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def test_both_archives_hold_all_that_a_user_needs_as_files(sdist: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    for room in ("components", "pipelines", "deploy/base", "src/atelier"):
        for path in (PROJECT / room).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".j2", ".js", ".css", ".txt", ".typed"):
                name = f"atelier/{path.relative_to(PROJECT).as_posix().removeprefix('src/atelier/')}"
                assert name in held
                assert f"src/{name}" in members
    assert {f"atelier/docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")} <= held
    assert {f"atelier/templates/{path.name}" for path in (PROJECT / "src/atelier/templates").iterdir()} <= held


def test_a_version_carries_the_files_of_the_wheel_that_is_built(wheel: Path, tmp_path: Path) -> None:
    carried = write_wheel(tmp_path)
    bytes_of = carried.read_bytes()
    version = wheel.name.removesuffix("-py3-none-any.whl")
    assert re.fullmatch(re.escape(version) + r"\+sha256\.[0-9a-f]{16}-py3-none-any\.whl", carried.name)
    (constraints,) = tmp_path.glob("constraints-*.txt")
    constraint = constraints.read_text().strip()
    assert Requirement(constraint).specifier.contains(carried.name.split("-")[1])
    assert not Requirement(constraint).specifier.contains(wheel.name.split("-")[1])
    with zipfile.ZipFile(wheel) as built, zipfile.ZipFile(carried) as ours:
        infos = {name.partition("/")[2] for name in ours.namelist() if ".dist-info/" in name}
        files = [{name: x.read(name) for name in x.namelist() if ".dist-info/" not in name} for x in (built, ours)]
    assert files[0] == files[1]
    assert infos == {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD"}
    assert write_wheel(tmp_path).read_bytes() == bytes_of


def test_a_workspace_runs_to_the_end_by_the_core_alone_and_then_does_nothing(
    core: dict[str, str], tmp_path: Path
) -> None:
    pictures, workspace = write_pictures(tmp_path / "pets", count=200), tmp_path / "work"
    call(core, "atelier", "init", str(workspace), "--dataset", str(pictures), "--model", "cgan", cwd=tmp_path)
    where = call(core, "python", "-c", "import atelier; print(atelier.__file__)", cwd=workspace).stdout
    assert Path(where).is_relative_to(Path(core["PATH"].partition(os.pathsep)[0]).parent)
    text = (workspace / "params.yaml").read_text()
    for key, value in SMALL.items():
        text, count = re.subn(rf"\b{key}: [\d.]+", f"{key}: {value}", text)
        assert count, key
    (workspace / "params.yaml").write_text(text.replace("model: cgan", "model: mine"))
    write_model(workspace)

    output = call(core, "python", "-m", "dvc", "repro", cwd=workspace).stdout
    assert "models:/pets-cgan/1" in output
    promoted = call(core, "atelier", "promote", "pets-cgan", cwd=workspace).stdout
    assert promoted.splitlines()[-1] == "models:/pets-cgan@champion is version 1"
    assert (workspace / "reports" / "index.html").is_file()
    assert read_json(workspace / "registry" / "pets-cgan.json")["name"] == "pets-cgan"
    lock = (workspace / "dvc.lock").read_bytes()

    output = call(core, "python", "-m", "dvc", "repro", cwd=workspace).stdout
    assert re.findall(r"Running stage '(\S+)'", output) == ["plan"]
    assert (workspace / "dvc.lock").read_bytes() == lock
    (untracked,) = [call(core, "git", "status", "--porcelain", "--untracked-files=all", cwd=workspace).stdout]
    assert not [line for line in untracked.splitlines() if re.search(r"data/|models/pets|reports/|\.db", line)]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("kubeflow", ["pipeline", "compile", "--image", "a@sha256:0"]),
        ("kubeflow", ["pipeline", "run", "--local"]),
        ("kubeflow", ["schedule", "list"]),
        ("kaggle", ["ingest", "pokemon"]),
        ("postgres", ["history", "mnist-cgan"]),
    ],
)
def test_what_an_extra_brings_is_asked_for_by_its_name(
    core: dict[str, str], tmp_path: Path, extra: str, command: list[str]
) -> None:
    (tmp_path / "params.yaml").write_text("datasets: [pokemon]\nruns: {}\n")
    there = core | {"MLFLOW_TRACKING_URI": "postgresql://nobody@127.0.0.1:1/none"}
    said = call(there, "atelier", *command, cwd=tmp_path, code=2).stderr.splitlines()[-1]
    assert said == f"atelier: needs the extra '{extra}': pip install 'atelier-images[{extra}]'"


def test_an_import_names_the_extra_and_help_needs_none(core: dict[str, str], tmp_path: Path) -> None:
    for room in ("pipelines.training", "components.stages"):
        error = call(core, "python", "-c", f"import atelier.{room}", cwd=tmp_path, code=1).stderr.splitlines()[-1]
        assert error.endswith("needs the extra 'kubeflow': pip install 'atelier-images[kubeflow]'")
    for command in (["pipeline", "submit"], ["schedule", "set"], ["ingest"]):
        assert "Usage:" in call(core, "atelier", *command, "--help", cwd=tmp_path).stdout

"""docs/architecture.md's table of layers is what the imports are."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "atelier"
# what only these may import: the rest runs without a cluster's packages
OF_CLUSTERS = {"kfp", "kfp_server_api", "kubernetes"}


@functools.cache
def layers() -> list[set[str]]:
    """The rows of the table, the highest first: rooms and files by their names below `atelier`."""
    table = (PROJECT / "docs" / "architecture.md").read_text().partition("| layer |")[2].partition("\n\n")[0]
    return [set(re.findall(r"`(\w+)", row.split("|")[1])) for row in table.splitlines()[2:]]


@functools.cache
def sources() -> dict[str, Path]:
    """Module name below `atelier` → file."""
    files = [path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts]
    for room in ("components", "pipelines"):
        files += (PACKAGE / room).glob("*.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports to run, those within functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def arrows() -> set[tuple[str, str]]:
    """(from, to) for each import from one room to another."""
    known = {room(name) for name in sources()}
    found = set()
    for name, path in sources().items():
        for imported in imports(path):
            target = imported.removeprefix("atelier.").split(".")[0]
            if imported.startswith("atelier.") and target in known and target != room(name):
                found.add((room(name), target))
    return found


def test_every_room_stands_in_the_table_once() -> None:
    named = [name for layer in layers() for name in layer]
    assert sorted(named) == sorted({room(name) for name in sources()} - {"__init__", "__main__"})


@pytest.mark.parametrize("arrow", sorted(arrows() - {("__main__", "cli")}))
def test_an_arrow_points_down(arrow: tuple[str, str]) -> None:
    height = {name: len(layers()) - index for index, layer in enumerate(layers()) for name in layer}
    assert height[arrow[0]] > height[arrow[1]], f"{arrow[0]} imports {arrow[1]}, which is not below it"


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {
        name: {target for target in sources() if f"atelier.{target}" in imports(path) and target != name}
        for name, path in sources().items()
    }
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert not graph, f"in a circle: {graph}"


def test_a_clusters_packages_stay_in_components_and_pipelines() -> None:
    for name, path in sources().items():
        if room(name) not in ("components", "pipelines"):
            assert not {room(imported) for imported in imports(path)} & OF_CLUSTERS, name


def test_models_know_nothing_of_ours_but_errors() -> None:
    for name, path in sources().items():
        if room(name) == "models":
            ours = {room(one.removeprefix("atelier.")) for one in imports(path) if one.startswith("atelier.")}
            assert ours <= {"models", "errors"}, name

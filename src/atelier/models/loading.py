"""Code of the user's own, run from its file: never found by a search path, never in the way of another workspace's."""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
import traceback
from collections.abc import Callable, Collection
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from atelier.errors import InputError


class _FromSource(SourceFileLoader):
    """Compiles a file each time: bytecode beside it is told from older by whole seconds, and files change faster."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Packages(MetaPathFinder):
    """Finds the modules of packages that stand for folders; `from .blocks import Block` is looked for there alone."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.numbers = itertools.count()

    def add(self, folder: Path) -> str:
        """The name of a new package that stands for a folder."""
        name = f"atelier_own_{next(self.numbers)}"
        self.folders[name] = folder
        return name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What `import` asks for a module."""
        package, *parts = fullname.split(".")
        if (folder := self.folders.get(package)) is None:
            return None
        base = folder.joinpath(*parts)
        places = [base / "__init__.py", *([base.with_suffix(".py")] if parts else [])]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            spec = None if parts else ModuleSpec(fullname, None)
            if spec is not None:
                spec.submodule_search_locations = [str(folder)]
            return spec
        inside = [str(base)] if file.name == "__init__.py" else None
        return spec_from_file_location(
            fullname, file, loader=_FromSource(fullname, str(file)), submodule_search_locations=inside
        )


_packages = _Packages()


def load_file(file: Path) -> ModuleType:
    """Run a file as a module of a package that stands for its folder; each time anew, since it may have been edited."""
    return importlib.import_module(f"{_package_of(file)}.{file.stem}")


def load_module(file: Path, module: str | None) -> ModuleType:
    """Import code of the user's own: a module of an installed package, or with None a file of a workspace."""
    return load_file(file) if module is None else importlib.import_module(module)


def load_name(name: str, file: Path, package: str | None = None) -> Any:
    """What a file gives a name at its top, by running only the statements that it takes: an entry takes no torch.

    Where these do not stand alone, all of the file is run.

    Args:
        name: one that `bound` finds.
        file: with Python in it.
        package: that relative imports start from; None: a package that stands for the file's folder.
    """
    tree = ast.parse(file.read_bytes(), str(file))
    wanted, chosen = {name}, set[ast.stmt]()
    while more := {node for node in tree.body if node not in chosen and _concerns(node, wanted)}:
        chosen |= more
        wanted |= set().union(*map(_mentioned, more))
    alone = ast.Module([node for node in tree.body if node in chosen], [])
    for code in (alone, tree):
        inside = package if package is not None else _package_of(file)
        names = {"__name__": f"{inside}.{file.stem}", "__package__": inside, "__file__": str(file)}
        try:
            exec(compile(code, str(file), "exec"), names)
            return names[name]
        except (NameError, AttributeError, KeyError, IndexError):  # of what was left out
            if code is tree:
                raise
    raise AssertionError


def _concerns(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement gives something to one of these names, or changes what it has, as `VALUES["a"] = 1` does."""
    return bool((bound([node]) or _mentioned(node)) & names)


def _mentioned(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def bound(nodes: list[ast.stmt]) -> set[str]:
    """The names that statements at the top of a module give something to; ALL of a module are "*"."""
    found = set[str]()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.alias):
                found.add(part.asname or part.name.partition(".")[0])
            elif isinstance(part, ast.FunctionDef | ast.ClassDef):
                found.add(part.name)
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                found.add(part.id)
    return found


def find_own(
    what: str,
    name: str,
    folder: Path | None,
    group: str,
    built_in: Collection[str],
    said: Callable[[EntryPoint], str],
) -> tuple[Path | None, EntryPoint | None]:
    """Where the user has something by a name: the file of a folder, or an installed package's; neither if built in.

    Args:
        what: it is, in words.
        name: of it.
        folder: of a workspace; None outside one.
        group: of entry points of packages.
        built_in: the names that are.
        said: what is said of an entry point.

    Raises:
        InputError: if two have this name.
    """
    file = None if folder is None or not name.isidentifier() else folder / f"{name}.py"
    here = file if file is not None and file.is_file() else None
    if here is not None and (built := {name, name.replace("_", "-")} & set(built_in)):
        raise InputError(f"{here}: '{built.pop()}' is a built-in {what}; give the file another name")
    if name in built_in:
        return None, None
    installed = list(entry_points(group=group, name=name))
    if len(installed) + (here is not None) > 1:
        places = [str(here)] if here else []
        places += [f"the installed '{said(one)}'" for one in installed]
        raise InputError(f"{what} '{name}': is in {' and in '.join(places)}; rename one of them")
    return here, next(iter(installed), None)


def spec_of(point: EntryPoint, who: str) -> ModuleSpec | None:
    """Of the module that an entry point names, if it has a file.

    Raises:
        InputError: about `who`, if the package around it cannot be imported.
    """
    try:
        spec = find_spec(point.module)
    except Exception as error:  # whatever the package around it may raise
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{who}: cannot be imported: {words}; mend it") from None
    return None if spec is None or spec.origin is None else spec


def place(file: Path, error: BaseException) -> str:
    """A file, and the last of its lines on the way to an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def not_imported(file: Path, error: BaseException) -> InputError:
    """What is said of a file of Python that does not run."""
    words = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:300]
    hint = "mend it"
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if missing.partition(".")[0] == file.parent.name or (file.parent / f"{missing}.py").is_file():
        hint = "a file beside it is imported by 'from .NAME import …'"
    return InputError(f"{place(file, error)}: cannot be imported: {type(error).__name__}: {words}; {hint}")


def _package_of(file: Path) -> str:
    if _packages not in sys.meta_path:
        sys.meta_path.insert(0, _packages)
    return _packages.add(file.parent)

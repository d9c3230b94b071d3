"""Models of the user's own: a file `models/NAME.py` of the workspace, or a module of an installed package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from atelier.errors import AtelierError, InputError
from atelier.models import MODELS, Model, ModelCode, built_in
from atelier.models.loading import bound, find_own, load_name, not_imported, spec_of
from atelier.models.recipe import GanRecipe, VaeRecipe

FOLDER = "models"  # of a workspace
ENTRY = "MODEL"
GROUP = "atelier.models"  # of entry points: a model's name → the module that holds it


def find_model(name: str, root: Path | None) -> ModelCode | None:
    """The model of this name, if there is one: built in, of a workspace, or of an installed package.

    Raises:
        InputError: if two have this name, or its file has a mistake.
    """
    here, installed = find_own("model", name, None if root is None else root / FOLDER, GROUP, MODELS, _requirement)
    if installed is not None:
        return _installed(name, installed)
    if here is not None:
        return ModelCode(name, _read(here), here, None)
    return built_in(name) if name in MODELS else None


def own_names(root: Path) -> Iterator[str]:
    """The models that are not built in, by name: those of a workspace, then those of installed packages."""
    for file in sorted((root / FOLDER).glob("*.py")):
        try:
            holds_one = ENTRY in bound(ast.parse(file.read_bytes()).body)
        except (SyntaxError, ValueError, OSError):
            holds_one = True  # whoever asks for it is told
        if holds_one:
            yield file.stem
    yield from sorted(entry_points(group=GROUP).names)


def all_models(root: Path) -> Iterator[ModelCode]:
    """The models that are built in, and those of the user's own.

    Raises:
        InputError: if two have one name, or a file has a mistake.
    """
    for name in dict.fromkeys([*MODELS, *own_names(root)]):
        if (code := find_model(name, root)) is not None:
            yield code


def _installed(name: str, point: EntryPoint) -> ModelCode:
    requirement = _requirement(point)
    spec = spec_of(point, f"model '{name}': {requirement}")
    if spec is None:
        raise InputError(f"model '{name}': {requirement} has no module {point.module}; install it again")
    file = Path(str(spec.origin))
    return ModelCode(name, _read(file, spec.parent), file, point.module, requirement)


def _requirement(point: EntryPoint) -> str:
    return f"{point.dist.name}=={point.dist.version}" if point.dist else point.value


def _read(file: Path, package: str | None = None) -> Model:
    """The entry of a file, without the rest of it where it can be; what is missing in the rest is told all the same."""
    try:
        nodes = ast.parse(file.read_bytes(), str(file)).body
        names = bound(nodes)
        if ENTRY not in names and "*" not in names:
            raise InputError(f"{file}: has no {ENTRY}; add {ENTRY} = Model(recipe=..., source=..., data_range=...)")
        entry = load_name(ENTRY, file, package)
    except AtelierError as error:
        raise InputError(str(error)) from None
    except (Exception, SystemExit) as error:  # whatever code of the user's own may raise
        raise not_imported(file, error) from None
    line = next((node.lineno for node in reversed(nodes) if ENTRY in bound([node])), 1)
    if not isinstance(entry, Model):
        raise InputError(f"{file}:{line}: {ENTRY} is {type(entry).__name__}, not Model(...); mend it")
    if type(entry.recipe) not in (GanRecipe, VaeRecipe):
        raise InputError(
            f"{file}:{line}: {ENTRY}.recipe: must be GanRecipe(...) or VaeRecipe(...), not of a class of its own"
        )
    for role in entry.roles:
        if role not in names and "*" not in names:
            raise InputError(f"{file}: has no function '{role}'; add it")
    return entry

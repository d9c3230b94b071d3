"""Code of the user's own: what of it counts, what a trained model carries of it, and when a model's may run.

A trained model holds the sources that its networks were built by, in `code/`. Atelier's commands do not run these: they
run those of the workspace, or of an installed package, if they are the same but for comments and what is not used. What
else a training was made with, such as a loss, lies in `recipe/`: nobody needs it to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from atelier.closure import Package, Table
from atelier.config.records import ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.files import digest_of, folder_digest
from atelier.models import ModelCode, built_in
from atelier.models.own import ENTRY, FOLDER, find_model
from atelier.own import Part

CARRIED = "code"  # the folder of a trained model, laid out like a workspace
RECIPE = "recipe"  # the same, of what it was trained with
# what an entry says that is known, once read, by its values
RESOLVED = frozenset({"recipe", "labels", "source", "home"})


def module_of(code: ModelCode) -> str:
    """The module of a model as others import it; a workspace's are of a package `models`."""
    return code.module or f"{FOLDER}.{code.name}"


def package_of(code: ModelCode) -> Path:
    """The folder of the package that holds a model; the path without `.py` of a module that is in none."""
    depth = module_of(code).count(".") + (code.file.name == "__init__.py")
    return code.file.parents[depth - 1] if depth else code.file.with_suffix("")


def table_of(code: ModelCode) -> Table:
    """Its entry, of which counts what is not resolved."""
    return Table(module_of(code), ENTRY, RESOLVED)


def names_of(code: ModelCode) -> dict[str, list[str]]:
    """What is used of its module."""
    return {module_of(code): [*code.entry.roles, ENTRY]}


def is_own(code: ModelCode) -> bool:
    """Whether a model is not built in."""
    return not (code.module or "").startswith("atelier.")


def counted_digest(code: ModelCode, folder: Path | None = None) -> str:
    """Digest of the code that builds its networks, where it is or below `folder`: of what can run of its own package.

    Raises:
        AtelierError: if a file is missing or no Python.
    """
    package = package_of(code) if folder is None else folder / package_of(code).name
    return Package(package, [table_of(code)]).digest(names_of(code))


def sources(code: ModelCode) -> dict[str, bytes]:
    """The files that build its networks, by their paths beside its package; none of a model that is built in."""
    if not is_own(code):
        return {}
    return _files(Package(package_of(code), [table_of(code)]), names_of(code))


def part_sources(parts: Iterable[Part]) -> dict[str, bytes]:
    """The files that hold losses and the like of the user's own, by their paths beside their packages."""
    return {name: file for part in parts for name, file in _files(Package(part.package), part.used).items()}


def part_digests(parts: Iterable[Part]) -> dict[str, str]:
    """Digests of what can run of their own packages, by kind and name."""
    return {f"{part.kind.what} {part.name}": Package(part.package).digest(part.used) for part in parts}


def _files(package: Package, used: Mapping[str, list[str]]) -> dict[str, bytes]:
    found = package.closure(used)
    paths = {path for module, counted in found.items() for path in (package.path(module), *counted.files) if path}
    return {path.relative_to(package.folder.parent).as_posix(): path.read_bytes() for path in sorted(paths)}


def sources_sha256(files: Mapping[str, bytes]) -> str | None:
    """The `folder_digest` of the folder that holds them; None of no files."""
    lines = [f"{digest_of(files[name])}  {name}\n" for name in sorted(files, key=PurePosixPath)]
    return digest_of("".join(lines).encode()) if files else None


def require_code(config: ModelConfig, folder: Path, root: Path | None) -> ModelCode:
    """The code of the trained model in `folder`, which must be built in, in the workspace, or installed.

    Raises:
        InputError: if it is not, or not as it was when the model was trained.
        AtelierError: if the sources that the model carries are not those of its config.
    """
    if config.code_sha256 is None:
        return built_in(config.model)
    carried = folder / CARRIED
    if folder_digest(carried) != config.code_sha256:
        raise AtelierError(f"{carried}: altered, its sha256 is not the one in config.json; restore or retrain it")
    code = find_model(config.model, root)
    if code is None:
        wrong = f"no {FOLDER}/{config.model}.py here"
    elif type(code.entry.recipe) is type(config.recipe) and _is_same(code, carried):
        return code
    else:
        wrong = f"{code.file} is not the code that it was trained with"
    raise InputError(
        f"run '{config.run}': its model '{config.model}' is the user's own, and {wrong}; bring it back, give --root of "
        "its workspace or train again; mlflow.pyfunc draws from a registered version by the code that this carries"
    )


def _is_same(code: ModelCode, carried: Path) -> bool:
    try:
        theirs = counted_digest(code, carried)
    except (
        AtelierError,
        ValueError,
        RecursionError,
        MemoryError,
        OSError,
    ):  # whatever a forged file may do to a reader
        return False
    return counted_digest(code) == theirs

"""Losses, augmentations, metrics and image sources of the user's own: a file of the workspace, or of a package.

Each kind has a folder of the workspace, whose name with `atelier.` before it is the group of entry points of installed
packages. Models of the user's own, which say more, are found by `models.own`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, InputError
from atelier.models.loading import bound, find_own, load_module, not_imported, place, spec_of


@dataclass(frozen=True)
class Kind:
    """A kind of thing that may be the user's own.

    Attributes:
        what: it is, in words.
        folder: of a workspace that holds its files.
        entry: the name that a file of it gives something to.
        example: of that.
    """

    what: str
    folder: str
    entry: str
    example: str


LOSS = Kind("loss", "losses", "LOSS", "LOSS = AdversarialLoss(real=..., fake=..., generator_on_fakes=...)")
AUGMENTATION = Kind("augmentation", "augmentations", "augment", "def augment(images, noise): ...")
METRIC = Kind("metric", "metrics", "METRIC", "METRIC = Metric(kind=..., title=..., best=..., explanation=..., ...)")
SOURCE = Kind("source", "sources", "fetch", "def fetch(address, request): ...")


@dataclass(frozen=True)
class Part:
    """Something of the user's own.

    Attributes:
        kind: of it.
        name: by which parameters name it.
        file: that holds it.
        module: that this file is to Python; None: it lies in a workspace, and is run from there.
    """

    kind: Kind
    name: str
    file: Path
    module: str | None

    @property
    def used(self) -> dict[str, list[str]]:
        """What is used of its module; a workspace's is of a package that is named as the folder."""
        return {self.module or f"{self.kind.folder}.{self.name}": [self.kind.entry]}

    @property
    def package(self) -> Path:
        """The folder of the package that holds it; the path without `.py` of a module that is in none."""
        (module,) = self.used
        depth = module.count(".") + (self.file.name == "__init__.py")
        return self.file.parents[depth - 1] if depth else self.file.with_suffix("")

    @cached_property
    def line(self) -> int:
        """Of the file, where its entry begins."""
        nodes = ast.parse(self.file.read_bytes(), str(self.file)).body
        return next((node.lineno for node in reversed(nodes) if self.kind.entry in bound([node])), 1)

    def load(self) -> Any:
        """Run its file; what that gives its entry.

        Raises:
            InputError: if it does not run.
        """
        try:
            return getattr(load_module(self.file, self.module), self.kind.entry)
        except (Exception, SystemExit) as error:  # whatever code of the user's own may raise
            raise not_imported(self.file, error) from None

    def refused(self, problem: str) -> InputError:
        """What is said of one whose entry is not what it must be."""
        return InputError(f"{self.file}:{self.line}: {self.kind.entry} {problem}; mend it")

    def failed(self, error: Exception) -> AtelierError:
        """What is said of one that fails when it is tried or used."""
        words = " ".join(str(error).split())[:300]
        return AtelierError(
            f"{place(self.file, error)}: the {self.kind.what} '{self.name}' fails: {type(error).__name__}: {words}; "
            "mend it"
        )


def find_part(kind: Kind, name: str, root: Path | None, built_in: Collection[str]) -> Part | None:
    """What the user has of a kind by this name; None if that is built in, or unknown.

    Raises:
        InputError: if two have this name, or the file has a mistake that is seen without running it.
    """
    folder = None if root is None else root / kind.folder
    group = f"atelier.{kind.folder}"
    here, installed = find_own(kind.what, name, folder, group, built_in, said=lambda point: point.value)
    if installed is not None:
        part = Part(kind, name, _installed_file(kind, installed), installed.module)
    elif here is not None:
        part = Part(kind, name, here, None)
    else:
        return None
    try:
        names = bound(ast.parse(part.file.read_bytes(), str(part.file)).body)
    except (SyntaxError, ValueError, OSError) as error:
        raise not_imported(part.file, error) from None
    if kind.entry not in names and "*" not in names:
        raise InputError(f"{part.file}: has no {kind.entry}; add {kind.example}")
    return part


def part_names(kind: Kind, root: Path | None) -> Iterator[str]:
    """What there is of a kind by name: in a workspace, then in installed packages."""
    if root is not None:
        yield from sorted(file.stem for file in (root / kind.folder).glob("*.py"))
    yield from sorted(entry_points(group=f"atelier.{kind.folder}").names)


def _installed_file(kind: Kind, point: EntryPoint) -> Path:
    spec = spec_of(point, f"{kind.what} '{point.name}': {point.value}")
    if spec is None:
        raise InputError(f"{kind.what} '{point.name}': no module {point.module}; install its package again")
    return Path(str(spec.origin))

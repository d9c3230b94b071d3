"""Which code whoever uses a function can execute, read from the files without running them.

That is its definition, the definitions that it names, be they in its module or imported from others, and so on; and of
every module imported on the way what stands at its top and defines nothing. Comments, docstrings and empty lines do not
count; of a table only the rows that are asked for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError
from atelier.files import digest_of

STRING = (
    rb"""[bBfFrRuU]{0,2}(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
)
# a string, or what may end a line without meaning anything, with the empty lines after it
LAYOUT = re.compile(rb"(?P<string>" + STRING + rb")|(?:[ \t]*(?:#[^\n]*)?\n)+", re.DOTALL)
NAME = re.compile(rb"""["']([\w.-]{3,100})["']""")  # a string that may name a file, or a module
DOTS = 2  # at least, in the name of a module: those of MLflow's tags have one
ALL = "*"  # every name of a module

Span = tuple[int, int]  # bytes of a file
Row = tuple[str, str]  # a table's name, and a key


@dataclass(frozen=True)
class Table:
    """A dict literal at the top of a module, of which each reader uses single rows; or a call, which is one row.

    Attributes:
        module: that it stands in.
        name: of the dict.
        resolved: keywords of a row that its readers get in another way, and so do not count.
    """

    module: str
    name: str
    resolved: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Import:
    """What an import calls something, the module that it is from, and its name there; ALL: the module itself."""

    name: str
    module: str
    taken: str


@dataclass(frozen=True)
class Part:
    """A statement at the top of a module that is no import, or a row of a table there.

    Attributes:
        text: without layout and docstrings.
        lines: the first and the last.
        defines: names; none if it counts for whoever imports the module.
        uses: names that stand in it; `a.b` of an attribute, `a.` of a name that stands without one.
        imports: that stand in it.
        row: which one it is.
    """

    text: bytes
    lines: tuple[int, int]
    defines: frozenset[str]
    uses: frozenset[str]
    imports: tuple[Import, ...] = ()
    row: Row | None = None


@dataclass
class Module:
    """The imports at the top of a module, and what else stands there."""

    imports: list[Import] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def used(
        self, names: Collection[str], rows: Collection[Row], uncounted: Collection[str]
    ) -> tuple[list[Part], set[str]]:
        """What counts of it for whoever uses these names, and all names that are used then."""
        known, chosen = set(names), set[int]()
        rest = {n: part for n, part in enumerate(self.parts) if part.defines.isdisjoint(uncounted)}
        while more := {n for n, part in rest.items() if n not in chosen and _counts(part, known, rows)}:
            chosen |= more
            known |= set().union(*(self.parts[n].uses for n in more))
        return [self.parts[n] for n in sorted(chosen)], known


def _counts(part: Part, names: Collection[str], rows: Collection[Row]) -> bool:
    if part.row is not None and part.row not in rows:
        return False
    return not part.defines or ALL in names or not part.defines.isdisjoint(names)


@dataclass(frozen=True)
class Counted:
    """What of a module counts, and the files beside it that this names."""

    parts: list[Part]
    imports: list[Import]
    files: list[Path]


class Package:
    """The code of a package on disk.

    Args:
        folder: of the package, whose name it bears.
        tables: of which single rows count.
        uncounted: definitions, by module and name, that are passed over, and with them what only they use.
        others: folders of further packages that use it.
    """

    def __init__(
        self,
        folder: Path,
        tables: Collection[Table] = (),
        uncounted: Collection[str] = (),
        others: Collection[Path] = (),
    ) -> None:
        self.folder, self.tables, self.uncounted = folder, tables, uncounted
        self.folders = {one.name: one for one in (*others, folder)}
        self.path, self.module = cache(self._path), cache(self._module)

    def digest(
        self, used: Mapping[str, Collection[str]], rows: Collection[Row] = (), without: Collection[str] = ()
    ) -> str:
        """Digest of all code that `closure` finds."""
        found = self.closure(used, rows, without)
        texts = {}
        for name, counted in found.items():
            imports = sorted(f"{one.name} {one.module} {one.taken}\n" for one in counted.imports)
            texts[name] = "".join(imports).encode() + b"\n".join(part.text for part in counted.parts)
            texts |= {self._name(path, name): path.read_bytes() for path in counted.files}
        return digest_of(
            "".join(f"{name} {digest_of(texts[name])}\n" for name in sorted(texts) if texts[name]).encode()
        )

    def closure(
        self, used: Mapping[str, Collection[str]], rows: Collection[Row] = (), without: Collection[str] = ()
    ) -> dict[str, Counted]:
        """What counts for whoever uses some names of some modules; by module, with every one that is imported.

        Args:
            used: module → names; ALL: every one.
            rows: of the tables.
            without: modules that are passed over.

        Raises:
            AtelierError: if a module is missing or no Python.
        """
        known: dict[str, set[str]] = {}
        found: dict[str, Counted] = {}
        waiting = [(module, frozenset(names)) for module, names in used.items()]
        while waiting:
            name, names = waiting.pop()
            if name in without or (name in known and names <= known[name]):
                continue
            known[name] = known.get(name, set()) | names
            module, path = self.module(name), self.path(name)
            assert path is not None
            skipped = {one.rpartition(".")[2] for one in self.uncounted if one.rpartition(".")[0] == name}
            parts, used_names = module.used(known[name], rows, skipped)
            imports = [one for one in module.imports if {ALL, one.name} & used_names or one.name == ALL]
            strings = {string.decode() for part in parts for string in NAME.findall(part.text)}
            # files of Python are found by what imports them
            named = [path.parent / one for one in sorted(strings) if "." in one and not one.endswith(".py")]
            files = [one for one in named if one.is_file()]
            found[name] = Counted(parts, imports, files)
            waiting += [(one, frozenset({ALL})) for one in strings if one.count(".") >= DOTS and self.path(one)]
            waiting += [needed for one in module.imports for needed in self._imported(one, used_names)]
            waiting += [
                needed
                for part in parts
                for one in part.imports
                for needed in self._imported(one, part.uses | {one.name})
            ]
            if self.path(around := name.rpartition(".")[0]):  # the package around it is imported first
                waiting.append((around, frozenset()))
        return found

    def _imported(self, one: Import, names: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
        """The module that is imported, and what of it is used where these names are."""
        is_used = bool({ALL, one.name} & set(names)) or one.name == ALL
        inner = f"{one.module}.{one.taken}"
        module = inner if one.taken != ALL and self.path(inner) else one.module
        if not self.path(module):
            return
        if module == one.module and one.taken != ALL:  # a definition in it
            yield module, frozenset({one.taken} if is_used and inner not in self.uncounted else ())
        elif ALL in names or f"{one.name}." in names or ("." in one.module and one.taken == ALL):
            yield module, frozenset({ALL} if is_used else ())
        else:
            yield module, frozenset(name.partition(".")[2] for name in names if name.startswith(f"{one.name}."))

    def _path(self, name: str) -> Path | None:
        """The file of a module; None if it is not one of this package."""
        top, *parts = name.split(".")
        if top not in self.folders or not all(part.isidentifier() for part in parts):
            return None
        base = self.folders[top].joinpath(*parts)
        return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)

    def _name(self, path: Path, module: str) -> str:
        """What a file that a module names is called in the digest."""
        top = module.partition(".")[0]
        inside = path.relative_to(self.folders[top]).as_posix()
        return inside if self.folders[top] == self.folder else f"{top}/{inside}"

    def _module(self, name: str) -> Module:
        path = self.path(name)
        if path is None:
            raise AtelierError(f"{name}: no such module in {self.folder}; add it, or remove what names it")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tables = {table.name: table for table in self.tables if table.module == name}
        try:
            return _Reader(path.read_bytes(), package, tables).module
        except SyntaxError as error:
            raise AtelierError(f"{path}:{error.lineno}: cannot be read: {error.msg}; mend it") from None


class _Reader:
    """Takes a module apart.

    Args:
        data: its file.
        package: that relative imports start from.
        tables: that stand in it, by name.
    """

    def __init__(self, data: bytes, package: str, tables: Mapping[str, Table]) -> None:
        self.data, self.package, self.tables = data, package, tables
        self.starts = [0, *accumulate(len(line) for line in data.splitlines(keepends=True))]
        self.module = Module()
        body = [node for node in ast.parse(data).body if not _is_idle(node)]
        for node in body:
            self.module.imports += self._imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ()
        # a definition under a decorator of our own may be known by that alone
        ours = {one.name for one in self.module.imports if one.module.split(".")[0] == package.split(".")[0]}
        ours |= {name for node in body for name in _defined(node)}
        for node in body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                is_marked = bool(_names(getattr(node, "decorator_list", [])) & ours)
                self.module.parts += self._parts(node, frozenset() if is_marked else frozenset(_defined(node)))

    def _parts(self, node: ast.stmt, defines: frozenset[str]) -> Iterator[Part]:
        table = self.tables.get(next(iter(defines), ""))
        value = getattr(node, "value", None)
        literal = value if table and isinstance(value, ast.Dict) else None
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        lines = first, node.end_lineno or first
        inner = list(_statements(node))
        cut = [self._span(one) for one in [*filter(_is_idle, inner), *([literal] if literal else [])]]
        imports = tuple(one for each in inner for one in self._imports(each))
        text = self._text((self.starts[first - 1], self._span(node)[1]), cut)
        if table and isinstance(value, ast.Call):
            counted = _of_row(value, table.resolved)
            text = b"\n".join(self._text(self._span(one), []) for one in counted)
            yield Part(text, lines, defines, frozenset(_names(counted)))
            return
        uses = _names(child for child in ast.iter_child_nodes(node) if child is not literal)
        yield Part(text, lines, defines, frozenset(uses), imports)
        if table and literal:
            for key, value in zip(literal.keys, literal.values, strict=True):
                counted = _of_row(value, table.resolved)
                text = b"\n".join(self._text(self._span(one), []) for one in [key, *counted] if one)
                row = (table.name, str(key.value)) if isinstance(key, ast.Constant) else None
                yield Part(text, (value.lineno, value.end_lineno or 0), defines, frozenset(_names(counted)), (), row)

    def _imports(self, node: ast.stmt) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for one in node.names:
                yield Import(one.asname or one.name.partition(".")[0], one.name, ALL)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), self.package)
            for one in node.names:
                yield Import(one.asname or one.name, module, one.name)

    def _span(self, node: Any) -> Span:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, span: Span, cut: Iterable[Span]) -> bytes:
        """What stands there without some parts, and without layout."""
        pieces, position = list[bytes](), span[0]
        for start, end in sorted(cut):
            pieces.append(self.data[position:start])
            position = max(end, position)
        text = b"".join([*pieces, self.data[position : span[1]], b"\n"])
        return LAYOUT.sub(lambda found: found["string"] or b"\n", text).strip()


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All statements inside one, down to the innermost, that not only a type checker reads."""
    for inner in ("body", "orelse", "handlers", "finalbody", "cases"):
        for one in getattr(node, inner, []):
            yield one
            if not _is_idle(one):
                yield from _statements(one)


def _is_idle(node: ast.AST) -> bool:
    """Whether a statement does nothing: a docstring, or what only a type checker reads."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _defined(node: ast.stmt) -> set[str]:
    """What a statement is there for; nothing, if for what it does, or for Python itself."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = {node.name}
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        parts = [part for target in targets for part in ast.walk(target)]
        if any(isinstance(part, ast.Attribute | ast.Subscript) for part in parts):
            return set()
        names = {part.id for part in parts if isinstance(part, ast.Name)}
    else:
        return set()
    return set() if any(name.startswith("__") for name in names) else names


def _of_row(value: ast.expr, resolved: Collection[str]) -> list[ast.expr | ast.keyword]:
    """What of a row counts: all, or a call without some keywords."""
    if not isinstance(value, ast.Call):
        return [value]
    return [value.func, *value.args, *(keyword for keyword in value.keywords if keyword.arg not in resolved)]


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that stand in these parts of a tree, as `Part.uses` has them."""
    found, bases = set[str](), set[ast.AST]()
    for tree in nodes:
        for node in ast.walk(tree):  # an attribute comes before the name that it is of
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                bases.add(node.value)
                found |= {node.value.id, f"{node.value.id}.{node.attr}"}
            elif isinstance(node, ast.Name) and node not in bases:
                found |= {node.id, f"{node.id}."}
    return found

"""The closure of a small package, and that the project's own code keeps to what a static look can see."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

import atelier
from atelier.closure import ALL, LAYOUT, Package, Table
from atelier.errors import AtelierError

OURS = Path(atelier.__file__).parent
FILES = {
    "__init__.py": "VERSION = 1\nprint(VERSION)\n",
    "entry.py": """
        from __future__ import annotations

        from typing import TYPE_CHECKING

        from house import marked, shapes
        from house.inner.tool import Base, use as using
        from house.table import ROWS

        if TYPE_CHECKING:
            from house.never import Never

        LIMIT = 1

        def run(what: Never) -> str:
            from . import late
            page = "page.html"
            return helper(load("house.inner.by_name", page, "house.unused", late.LATE), ROWS)

        def helper(*values: object) -> object:
            return [LIMIT, using, values, shapes.COLOURS]

        def other() -> None:
            import house.unused

        class Kind(Base):
            pass
    """,
    "table.py": """
        from house.first import FIRST
        from house.second import SECOND

        ROWS: dict[str, object] = {
            # the first
            "one": make(FIRST, width=1, note="a"),
            "two": make(SECOND, width=2, note="b"),
        }
    """,
    "marked.py": """
        FOUND = []

        def mark(function):
            FOUND.append(function)
            return function

        @mark
        def found_by_its_mark():
            pass
    """,
    "inner/__init__.py": """
        from house.at_once import AT_ONCE

        def lazily():
            import house.unused
    """,
    "inner/tool.py": "class Base:\n    pass\n\n\ndef use():\n    return 1\n",
    "at_once.py": "AT_ONCE = 1\nprint('imported')\n",
    "page.html": "<p>",
    "inner/by_name.py": "BY_NAME = 1\n",
    "shapes.py": "SHAPES = 1\nCOLOURS = 1\n",
    **{f"{name}.py": f"{name.upper()} = 1\n" for name in ("late", "never", "first", "second", "unused")},
}
FIRST, SECOND = "from house.first import FIRST", "from house.second import SECOND"
ONE = [("ROWS", "one")]
RUN = {"house.entry": ["run"]}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    folder = tmp_path / "house"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(re.sub(r"^        ", "", text, flags=re.MULTILINE).removeprefix("\n"))
    return folder


def package(house: Path) -> Package:
    return Package(house, [Table("house.table", "ROWS", frozenset({"note"}))])


def digest(house: Path) -> str:
    return package(house).digest(RUN, ONE)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_what_is_executed_from_the_top_later_or_by_a_name(house: Path) -> None:
    found = package(house).closure(RUN, ONE)
    defined = {
        module.removeprefix("house").removeprefix("."): {
            name for part in counted.parts for name in (part.row[1:] if part.row else part.defines)
        }
        for module, counted in found.items()
    }
    assert defined == {
        "": {"VERSION"},  # which it prints
        "entry": {"LIMIT", "run", "helper"},
        "table": {"ROWS", "one"},
        "marked": {"FOUND", "mark"},  # and what is marked
        "shapes": {"COLOURS"},
        "first": {"FIRST"},
        "second": set(),
        "inner": set(),
        "inner.tool": {"use"},
        "at_once": set(),  # it prints
        "late": {"LATE"},
        "inner.by_name": {"BY_NAME"},
    }
    assert [path.name for counted in found.values() for path in counted.files] == ["page.html"]
    assert {name for name, counted in found.items() if any(not part.defines for part in counted.parts)} == {
        *("house", "house.marked", "house.at_once")
    }


def test_all_of_a_module_and_other_rows(house: Path) -> None:
    found = package(house).closure({"house.entry": [ALL]}, [*ONE, ("ROWS", "two")])
    assert {name for part in found["house.entry"].parts for name in part.defines} >= {"other", "Kind", "run"}
    assert [len(found[f"house.{name}"].parts) for name in ("second", "unused", "shapes")] == [1, 1, 2]
    assert len(found["house.inner.tool"].parts) == 2


def test_what_is_passed_over_with_what_only_that_uses(house: Path) -> None:
    found = Package(house, uncounted=["house.entry.helper"]).closure(RUN)
    assert {name for part in found["house.entry"].parts for name in part.defines} == {"run"}
    assert not found["house.shapes"].parts
    found = Package(house, uncounted=["house.inner.tool.use"]).closure(RUN)
    assert not found["house.inner.tool"].parts
    assert "house.late" not in package(house).closure(RUN, without=["house.late"])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("first.py", "FIRST = 1", "# a comment\n\n\nFIRST = 1  # another"),
        ("first.py", "FIRST = 1", '"""What it is."""\nFIRST = 1'),
        ("inner/tool.py", "def use():\n", 'def use():\n    """What it does."""\n\n'),
        ("inner/tool.py", "pass", "kind = 1"),
        ("table.py", f"{FIRST}\n{SECOND}\n", f"{SECOND}\n{FIRST}\n"),
        ("table.py", "# the first", "# number one"),
        ("table.py", "width=2", "width=3"),
        ("table.py", 'note="a"', 'note="c"'),
        ("table.py", '    "two"', '    "three": make(SECOND),\n    "two"'),
        ("entry.py", "import Never", "import Never as Always"),
        ("entry.py", "LIMIT = 1\n", "LIMIT = 1\n\ndef new():\n    return LIMIT\n"),
        ("entry.py", "import marked, shapes", "import marked, second, shapes"),
        ("second.py", "1", "2"),
        ("shapes.py", "SHAPES = 1", "SHAPES = 2"),
        ("unused.py", "1", "2"),
        ("at_once.py", "1", "2"),
    ],
)
def test_what_does_not_count(house: Path, file: str, old: str, new: str) -> None:
    before = digest(house)
    edit(house / file, old, new)
    assert digest(house) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("__init__.py", "print(VERSION)", "print(VERSION, VERSION)"),
        ("__init__.py", "= 1", "= 2"),
        ("inner/tool.py", "    return 1", "    if 1:\n        return 1"),
        ("inner/tool.py", "return 1", 'return """\n\n# no comment\n"""'),
        ("table.py", "width=1", "width=3"),
        ("table.py", "make(FIRST", "made(FIRST"),
        ("table.py", "house.first", "house.late"),
        ("marked.py", "    pass", "    print()"),
        ("at_once.py", "'imported'", "'read'"),
        ("inner/by_name.py", "1", "2"),
        ("late.py", "1", "2"),
        ("shapes.py", "COLOURS = 1", "COLOURS = 2"),
        ("page.html", "<p>", "<p> "),
        ("entry.py", "LIMIT = 1", "LIMIT = 2"),
        ("entry.py", "Base, use as using", "Base as using"),
    ],
)
def test_what_counts(house: Path, file: str, old: str, new: str) -> None:
    before = digest(house)
    edit(house / file, old, new)
    assert digest(house) != before


def test_empty_lines_count_inside_a_string_alone(house: Path) -> None:
    edit(house / "inner/tool.py", "return 1", 'return """a\n\nb"""')
    before = digest(house)
    edit(house / "inner/tool.py", "def use():\n", "def use():\n\n\n")
    assert digest(house) == before
    edit(house / "inner/tool.py", "a\n\nb", "a\nb")
    assert digest(house) != before


def test_what_cannot_be_read_is_one_line(house: Path) -> None:
    (house / "late.py").write_text("def late(:\n")
    with pytest.raises(AtelierError, match=r"late\.py:1: cannot be read: invalid syntax; mend it$"):
        digest(house)
    with pytest.raises(AtelierError, match=r"^house\.nowhere: no such module in "):
        package(house).digest({"house.nowhere": [ALL]})


@pytest.mark.parametrize("path", sorted(OURS.rglob("*.py")), ids=lambda path: path.relative_to(OURS).as_posix())
def test_comments_are_what_python_takes_for_them(path: Path) -> None:
    """And nothing reads a docstring, takes a definition by its name, or imports by a name that is put together."""
    data = path.read_bytes()
    found = [
        part for match in LAYOUT.finditer(data) if match["string"] is None for part in match[0].decode().splitlines()
    ]
    comments = [
        token.string for token in tokenize.tokenize(io.BytesIO(data).readline) if token.type == tokenize.COMMENT
    ]
    assert [part.strip() for part in found if part.strip()] == comments
    text = data.decode()
    assert not re.search(r"__doc__|getdoc|getsource|globals\(|sys\.modules", text)
    # models, and what notebooks ask of the package, which no stage does
    assert "import_module(" not in text or path.parent.name == "models" or path == OURS / "__init__.py"

"""The pages of the reference: each command as click has it, each parameter as its record and the comments have it."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from atelier.cli import app
from atelier.config import Params, Range, Search
from atelier.config.catalogue import SetSettings
from atelier.files import write_atomic
from atelier.models.recipe import GanRecipe, Recipe, Stop, VaeRecipe, Validation

API = """# Python

The interface for notebooks and scripts, by example: [python.md](../python.md).

```{eval-rst}
.. autofunction:: atelier.load
.. autoclass:: atelier.Workspace
   :members:
.. autoclass:: atelier.Model
   :members:
.. autoclass:: atelier.api.Table
   :members:
.. autoclass:: atelier.registry.sample.Pictures
   :members:
```
"""


def write(folder: Path) -> None:
    """Write the pages; one that has not changed stays as it is, and is not read again."""
    for name, text in (("commands", commands()), ("parameters", parameters()), ("api", API)):
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)


def commands() -> str:
    """Every command with its arguments and options."""
    parts = ["# Commands\n", "Options of every command: `--help`, and for the stages those of `atelier train`.\n"]
    for path, command in _leaves(app, click.Context(app, info_name="atelier")):
        context = click.Context(command, info_name=path)
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts.append(f"## {path}\n\n```\n{usage}\n```\n\n{inspect.cleandoc(command.help or '')}\n")
        options = [one for one in command.params if isinstance(one, click.Option)]
        if rows := [record for option in options if (record := option.get_help_record(context))]:
            parts.append("| option | |\n|---|---|\n" + "".join(f"| `{_cell(a)}` | {_cell(b)} |\n" for a, b in rows))
    return "\n".join(parts)


def _leaves(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield context.command_path, command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _leaves(found, click.Context(found, info_name=name, parent=context))


def parameters() -> str:
    """Every section of `params.yaml`, and what a run may set."""
    parts = ["# Parameters\n", "The keys of `params.yaml`. What is wrong in one is said with the nearest valid one.\n"]
    plain = {"datasets": "names of data sets", "runs": "runs by name, see below"}
    parts.append("| section | |\n|---|---|\n" + "".join(f"| `{name}` | {text} |\n" for name, text in plain.items()))
    for name, field in Params.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts.append(_section(f"`{field.alias or name}`", kind))
    parts.append(_section("`prepare.sets`, an entry", SetSettings))
    parts.append(_section("`search`, an entry", Search))
    parts.append(_section("`search`, a range of `keys`", Range))
    parts.append("## `runs`, an entry\n\n`dataset`, `model`, `init` (a model whose weights it starts from), and:\n")
    for title, kind, below in (
        ("For every model", Recipe, None),
        ("For GANs", GanRecipe, Recipe),
        ("For VAEs", VaeRecipe, Recipe),
        ("`validation`", Validation, None),
        ("`stop`", Stop, None),
    ):
        parts.append(_section(title, kind, below, "###"))
    parts.append("Defaults of `kimg`, `batch`, `latent`, `width` and rates are those of the model: `atelier models`.\n")
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel], below: type[BaseModel] | None = None, mark: str = "##") -> str:
    comments = _comments(kind)
    rows = [
        f"| `{field.alias or name}` | {_default(field)} | {_cell(_type(field, comments.get(name, '')))} |"
        for name, field in kind.model_fields.items()
        if below is None or name not in below.model_fields
    ]
    said = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return f"{mark} {title}\n\n{said}\n\n| key | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "must be set" if field.default_factory is None else ""
    value = field.default
    if value is None or isinstance(value, BaseModel):
        return "–"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else '`""`'


def _type(field: FieldInfo, comment: str) -> str:
    """What it may be, and what the code says beside it."""
    choices = [str(one) for one in _choices(field.annotation)]
    words = f"one of {', '.join(f'`{one}`' for one in choices)}" if choices else ""
    return "; ".join(part for part in (words, comment or field.description) if part)


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [one for inner in typing.get_args(annotation) for one in _choices(inner)]


def _comments(kind: type[BaseModel]) -> dict[str, str]:
    """The comment of each field of a record and of those it comes from: behind it, or in the lines above."""
    found = dict[str, str]()
    for owner in reversed(kind.__mro__):
        if owner is BaseModel or not issubclass(owner, BaseModel):
            continue
        source = inspect.getsource(owner)
        lines = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        (definition,) = ast.parse(inspect.cleandoc(f"if True:\n{source}") if source[0] == " " else source).body
        for node in getattr(definition, "body", []):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above, line = [], node.lineno - 1
                while line in lines and source.splitlines()[line - 1].lstrip().startswith("#"):
                    above.insert(0, lines[line])
                    line -= 1
                behind = [lines[one] for one in range(node.lineno, (node.end_lineno or 0) + 1) if one in lines]
                found[node.target.id] = " ".join(above + behind)
    return found


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

"""YAML as a person wrote it becomes typed, validated objects; each mistake is one line with its full key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atelier.errors import InputError

T = TypeVar("T")
PLAIN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
}


def _yaml() -> YAML:
    """YAML 1.2 as DVC reads it: `4e-4` is a number, a key given twice is an error."""
    return YAML(typ="safe", pure=True)


def read_yaml(file: Path) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        InputError: if it is not there, not YAML, or does not hold sections.
    """
    try:
        raw = _yaml().load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; run in the project's folder, or give --root or --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    except RecursionError:
        raise InputError(f"{file}: is not valid YAML: nested too deep") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(f"{file}:{where} is not valid YAML: {problem}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{file}: must hold sections such as 'datasets' and 'runs', found {type(raw).__name__}")
    _check_entries(raw, str(file))
    return raw


def _check_entries(section: dict[Any, Any], where: str) -> None:
    for key, value in section.items():
        if not isinstance(key, str):
            raise InputError(f"{where}: {key}: a key must be text; write it in quotes")
        if isinstance(value, dict):
            _check_entries(value, f"{where}: {key}")
        if value is None:
            raise InputError(
                f"{where}: {key}: is empty; give a value, in quotes if it begins with '#', or leave the key out"
            )


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in what was read; the value is YAML too.

    Raises:
        InputError: if it is not written like that, or names a key below a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override}: write section.key=value")
    *path, last = key.split(".")
    section: Any = raw
    for part in path:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise InputError(f"--set {override}: '{'.'.join(path)}' is a value, not a section")
    try:
        section[last] = _yaml().load(text)
    except YAMLError:
        raise InputError(f"--set {override}: '{text}' is not a YAML value") from None
    _check_entries({last: section[last]}, f"--set {override}")


def convert(value: Any, kind: type[T], file: str, *path: str) -> T:
    """Validate what stands at `path` of a file; the first thing wrong is one line with its full key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
    inner = [part for part in re.split(r"[.\[\]`]+", place) if part]
    if unknown := re.search(r"unknown field `(.*)`", message):
        valid = [field.encode_name for field in msgspec.structs.fields(_type_at(kind, inner))]
        raise InputError(f"{file}: {'.'.join([*path, *inner, unknown[1]])}: unknown key{nearest(unknown[1], valid)}")
    if missing := re.search(r"missing required field `(.*)`", message):
        raise InputError(f"{file}: {'.'.join([*path, *inner, missing[1]])}: missing; add it")
    found = value
    for part in inner:
        found = found[int(part) if isinstance(found, list) else part]
    problem = f"{file}: {'.'.join([*path, *inner])}: "
    if message.startswith("Invalid enum value"):
        raise InputError(
            f"{problem}cannot be {found!r}{nearest(str(found), map(str, get_args(_type_at(kind, inner))))}"
        )
    if not message.startswith("Expected"):  # values that contradict one another
        raise InputError(f"{file}: {'.'.join([*path, message])}")
    expected = message.removeprefix("Expected ").partition(", got")[0]
    words = re.sub(r"`([a-z]+)( \| null)?`", lambda match: PLAIN_WORDS.get(match[1], match[1]), expected)
    raise InputError(f"{problem}expected {words}, found {found!r}")


def _type_at(kind: Any, path: Iterable[str]) -> Any:
    """The type of what stands at `path` below a value of type `kind`, without its bounds and without None."""
    for part in path:
        if isinstance(kind, type) and issubclass(kind, Struct):
            kind = next(field.type for field in msgspec.structs.fields(kind) if field.encode_name == part)
        else:
            kind = get_args(kind)[-1]  # of a list's or a mapping's entries
        while get_origin(kind) in (Annotated, Union, UnionType):
            kind = get_args(kind)[0]
    return kind


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the closest valid word, or all of them."""
    names = list(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(sorted(names))}"

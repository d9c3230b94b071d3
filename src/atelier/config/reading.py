"""YAML as a person wrote it becomes typed, validated objects; each mistake is one line with its full key."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atelier.errors import InputError
from atelier.files import read_limited

T = TypeVar("T")
PLAIN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a section",
    "model": "a section",
}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def _yaml() -> YAML:
    """YAML 1.2 as DVC reads it: `4e-4` is a number, a key given twice is an error."""
    return YAML(typ="safe", pure=True)


LIMIT_BYTES = 1 << 20
LIMIT_VALUES = 100_000  # aliases of aliases make a few lines more than fits in memory


def read_yaml(file: Path) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        InputError: if it is not there, not YAML, or does not hold sections.
    """
    try:
        content = read_limited(file, LIMIT_BYTES)
        if len(content) > LIMIT_BYTES:
            raise InputError(f"{file}: larger than {LIMIT_BYTES >> 20} MB; give a file of parameters, not of data")
        raw = _yaml().load(content.decode())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; run in the project's folder, or give --root or --params") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; give a file of parameters by --params") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: cannot be read: {error}; save it as UTF-8") from None
    except RecursionError:
        raise InputError(f"{file}: is not valid YAML: nested too deep; correct it") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(f"{file}:{where} is not valid YAML: {problem}; correct it") from None
    except ValueError as error:  # such as a whole number of 5,000 digits
        raise InputError(f"{file}: is not valid YAML: {str(error).splitlines()[0]}; correct it") from None
    if not isinstance(raw, dict):
        raise InputError(f"{file}: must hold sections such as 'datasets' and 'runs', found {type(raw).__name__}")
    _check_entries(raw, str(file))
    return raw


def edited(text: str, edit: Callable[[Any], object]) -> str:
    """YAML after `edit` has changed what it holds; comments, quotes and the order of keys stay."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    content = yaml.load(text)
    edit(content)
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _check_entries(raw: dict[Any, Any], where: str) -> None:
    """Refuse keys that are no text, empty values, and values that are too many to look at."""
    left: list[tuple[str, dict[Any, Any] | list[Any]]] = [(where, raw)]
    for count, (place, section) in enumerate(left):
        entries = section.items() if isinstance(section, dict) else enumerate(section)
        if count + len(left) + len(section) > LIMIT_VALUES:
            raise InputError(f"{where}: holds more than {LIMIT_VALUES:,} values; write out what its aliases repeat")
        for key, value in entries:
            if isinstance(section, dict) and not isinstance(key, str):
                raise InputError(f"{place}: {key}: a key must be text; write it in quotes")
            if value is None:
                raise InputError(
                    f"{place}: {key}: is empty; give a value, in quotes if it begins with '#', or leave the key out"
                )
            if isinstance(value, dict | list):
                left.append((f"{place}: {key}", value))


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
    except (YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {override}: '{text[:200]}' is not a YAML value") from None
    _check_entries({last: section[last]}, f"--set {override}")


def convert(value: Any, kind: type[T], file: str, *path: str) -> T:
    """Validate what stands at `path` of a file; the first thing wrong is one line with its full key.

    Raises:
        InputError: if it is not of that kind.
    """
    try:
        config = None if isinstance(kind, type) and issubclass(kind, BaseModel) else STRICT
        return TypeAdapter(kind, config=config).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{file}: {sentence(error, kind, *path)}") from None


def sentence(error: ValidationError, kind: Any, *path: str) -> str:
    """What is wrong, in one line: a misspelt key, if there is one, since other mistakes follow from it."""
    problems = error.errors(include_url=False)
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    what, place, context = first["type"], [str(part) for part in first["loc"]], first.get("ctx", {})
    key = ".".join([*path, *place])
    if what == "extra_forbidden":
        return f"{key}: unknown key{nearest(place[-1], _keys(kind, first['loc'][:-1]))}"
    if what == "missing":
        return f"{key}: missing; add it"
    found = f"{first['input']!r}"[:200]
    if what == "literal_error":
        valid = [word.strip("'") for word in re.split(", | or ", context["expected"])]
        return f"{key}: cannot be {found}{nearest(str(first['input']), valid)}"
    if what == "value_error":  # values that contradict one another: the message begins with a key
        return f"{key}: {context['error']}" if place else ".".join([*path, str(context["error"])])
    if what == "too_short":
        return f"{key}: expected at least {context['min_length']}, found {found}"
    field = _field(kind, first["loc"])
    bound = next((f" {sign} {context[name]}" for name, sign in BOUNDS.items() if name in context), "")
    if bound:
        words = "a whole number" if _holds(field.annotation, int) else "a number"
    else:
        words = field.description or PLAIN_WORDS.get(what.split("_")[0], first["msg"])
    return f"{f'{key}: ' if key else ''}expected {words}{bound}, found {found}"


def _holds(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_holds(inner, kind) for inner in get_args(annotation))


def _field(kind: Any, place: Iterable[str | int]) -> FieldInfo:
    """The field at `place` below a model; one that says nothing where the model does not know it."""
    field = FieldInfo()
    for part in place:
        kind = _given(kind)
        if _is_section(kind):
            fields = (field for name, field in kind.model_fields.items() if part in (name, field.alias))
            field = next(fields, FieldInfo())
            kind = field.annotation
        else:
            kind = next(reversed(get_args(kind)), None)  # of a list's or a mapping's entries
    return field


def _keys(kind: Any, place: Iterable[str | int]) -> list[str]:
    """The keys that the section at `place` below a model may have."""
    place = list(place)
    section = _given(_field(kind, place).annotation if place else kind)
    while section is not None and not _is_section(section):
        section = _given(next(reversed(get_args(section)), None))
    return [] if section is None else [field.alias or name for name, field in section.model_fields.items()]


def _given(kind: Any) -> Any:
    """What a value is that may be left out."""
    kinds = get_args(kind)
    return next(one for one in kinds if one is not type(None)) if type(None) in kinds else kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the closest valid word, or all of them."""
    names = list(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(sorted(names))}"

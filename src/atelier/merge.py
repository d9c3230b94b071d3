"""Merging two branches of a workspace by what their parameters and locks say, where git compares lines.

Two branches that each add a run change the same lines: the last one of `runs`, and in dvc.lock what `plan` and
`compare` made. Here each key of params.yaml is merged by itself, and the record of a stage is taken whole, or left out
so that DVC runs the stage again.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atelier.config.reading import edited, read_yaml
from atelier.errors import AtelierError, InputError
from atelier.files import write_atomic
from atelier.processes import clean_environment
from atelier.tracking.origin import git

PARAMS, LOCK = "params.yaml", "dvc.lock"
SETS = {("datasets",)}  # lists whose items are merged one by one
MISSING = object()
MARKER = re.compile(rb"^(<<<<<<<|>>>>>>>) (.*?)\r?$", re.MULTILINE)


class Sides(NamedTuple):
    """A file as both branches had it, as the one here has it, and as the other one has it; and what git calls these."""

    base: bytes
    ours: bytes
    theirs: bytes
    here: str
    there: str

    def read(self, reader: Callable[[bytes, str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What each holds, by a reader of a text and the name of its side."""
        return map(reader, (self.base, self.ours, self.theirs), ("base", self.here, self.there))


class Merged(NamedTuple):
    """What was resolved, which stages DVC is to run again, and which files git still has conflicts in."""

    files: list[str]
    again: list[str]
    left: list[str]


def merge(root: Path) -> Merged:
    """Resolve the conflicts that `git merge`, `rebase` or `cherry-pick` left in params.yaml and dvc.lock; stage both.

    A file without marks of a conflict was resolved by hand, and is staged as it is.

    Raises:
        InputError: if there are none, or both sides changed a parameter, each in its way; nothing is written then.
        AtelierError: if git fails.
    """
    unmerged = _unmerged(root)
    texts, again = dict[str, bytes](), list[str]()
    for name in (PARAMS, LOCK):
        blobs = unmerged.get(name, {})
        if not {"2", "3"} <= blobs.keys() or not (root / name).is_file():
            continue  # no conflict; or one side has removed the file, which is for a person to decide
        now = (root / name).read_bytes()
        if not MARKER.search(now):
            texts[name] = now
        elif name == PARAMS:
            texts[name] = _params(_sides(root, blobs, now), also_lock=LOCK in unmerged)
        else:
            texts[name], again = _lock(_sides(root, blobs, now))
    if not texts:
        raise InputError(f"{root}: git has no conflict in {PARAMS} or {LOCK}; run 'git merge BRANCH' first")
    for name, text in texts.items():
        write_atomic(root / name, text)
    git(root, "add", "--", *texts)
    return Merged(list(texts), again, sorted(unmerged.keys() - texts.keys()))


def is_rebase(root: Path) -> bool:
    """Whether git is in the midst of a rebase."""
    places = [git(root, "rev-parse", "--git-path", name) for name in ("rebase-merge", "rebase-apply")]
    return any((root / place).exists() for place in places if place)


def merge_lines(ours: bytes, base: bytes, theirs: bytes, *options: str) -> tuple[bytes, int]:
    """What git makes of three texts, line by line, and how many conflicts it has left.

    Raises:
        AtelierError: if git fails.
    """
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / part for part in ("ours", "base", "theirs")]
        for file, text in zip(files, (ours, base, theirs), strict=True):
            file.write_bytes(text)
        return _git("merge-file", "--stdout", *options, *map(str, files))  # its exit code counts conflicts


def _git(*arguments: str) -> tuple[bytes, int]:
    """What git writes, byte for byte, and its exit code below those of failures."""
    done = subprocess.run(["git", *arguments], capture_output=True, env=clean_environment(), check=False)
    if done.returncode >= 128:
        raise AtelierError(f"git: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout, done.returncode


def _unmerged(root: Path) -> dict[str, dict[str, str]]:
    """Paths, relative to the workspace → the objects of their sides: `1` what was, `2` ours, `3` theirs."""
    if shutil.which("git") is None:
        raise InputError("git is not on this machine; install it")
    listed = git(root, "ls-files", "--unmerged", "-z", ":/")
    if listed is None:
        raise InputError(f"{root}: is in no git repository; give --root of a workspace that is")
    found = dict[str, dict[str, str]]()
    for line in filter(None, listed.split("\0")):
        (_, blob, side), path = line.split("\t")[0].split(), line.partition("\t")[2]
        found.setdefault(path, {})[side] = blob
    return found


def _sides(root: Path, blobs: Mapping[str, str], now: bytes) -> Sides:
    """The sides of a file that has marks of a conflict, which name them."""

    def content(side: str) -> bytes:
        return _git("-C", str(root), "cat-file", "blob", blobs[side])[0] if side in blobs else b""

    marks = {mark: label.decode(errors="replace") for mark, label in MARKER.findall(now)}
    here, there = marks.get(b"<<<<<<<", "ours"), marks.get(b">>>>>>>", "theirs")
    return Sides(content("1"), content("2"), content("3"), here, there)


def _params(sides: Sides, *, also_lock: bool) -> bytes:
    """The merged text: both sides' lines where that says the merged values, else ours with theirs written into it."""
    base, ours, theirs = sides.read(_values)
    conflicts = list[tuple[str, Any, Any]]()
    values = _merged(base, ours, theirs, (), conflicts)
    if conflicts:
        changed = ", ".join(
            f"{key} ({_shown(one)} in {sides.here}, {_shown(other)} in {sides.there})" for key, one, other in conflicts
        )
        then = ", then run 'atelier merge' again" if also_lock else ""
        raise InputError(f"{PARAMS}: both changed {changed}; resolve it by hand and 'git add {PARAMS}'{then}")
    of_both, _ = merge_lines(sides.ours, sides.base, sides.theirs, "--union")
    if _says(of_both, values):
        return of_both
    start, _ = merge_lines(sides.ours, sides.base, sides.theirs, "--ours")
    start = start if _readable(start) else sides.ours
    text = edited(start.decode(), lambda document: _write(document, values)).encode()
    if not _says(text, values):  # such as a value that several keys share by an alias
        raise InputError(f"{PARAMS}: cannot be merged by key; resolve it by hand and 'git add {PARAMS}'")
    return text.replace(b"\n", b"\r\n") if b"\r\n" in sides.ours else text


def _values(text: bytes, side: str) -> dict[str, Any]:
    """What a side says, read as params.yaml always is."""
    if not text.strip():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PARAMS
        file.write_bytes(text)
        try:
            return read_yaml(file)
        except InputError as error:
            raise InputError(str(error).replace(str(file), f"{PARAMS} of {side}")) from None


def _readable(text: bytes) -> dict[str, Any] | None:
    try:
        return _values(text, "")
    except InputError:
        return None


def _says(text: bytes, values: dict[str, Any]) -> bool:
    return _spelled(_readable(text)) == _spelled(values)


def _spelled(value: Any) -> str:
    """To compare by: to Python 1, 1.0 and true are equal."""
    return json.dumps(value, sort_keys=True, default=str)


def _shown(value: Any) -> str:
    text = "removed" if value is MISSING else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _merged(base: Any, ours: Any, theirs: Any, at: tuple[str, ...], conflicts: list[tuple[str, Any, Any]]) -> Any:
    """What both sides say; what each changed in its way is added to `conflicts`."""
    spelled = _spelled(base), _spelled(ours), _spelled(theirs)
    if spelled[1] == spelled[2] or spelled[2] == spelled[0]:
        return ours
    if spelled[1] == spelled[0]:
        return theirs
    if isinstance(ours, dict) and isinstance(theirs, dict) and (isinstance(base, dict) or base is MISSING):
        before = base if isinstance(base, dict) else {}
        merged = {
            key: _merged(
                before.get(key, MISSING), ours.get(key, MISSING), theirs.get(key, MISSING), (*at, key), conflicts
            )
            for key in dict.fromkeys([*ours, *theirs])
        }
        return {key: value for key, value in merged.items() if value is not MISSING}
    if at in SETS and all(isinstance(side, list) for side in (base, ours, theirs)):
        kept = [one for one in ours if one in theirs or one not in base]
        return kept + [one for one in theirs if one not in base and one not in ours]
    conflicts.append((".".join(at), ours, theirs))
    return ours


def _write(document: Any, values: Mapping[str, Any]) -> None:
    """Change a section to these values; what is equal keeps its comments and its way of writing."""
    for key in [key for key in document if key not in values]:
        del document[key]
    for key, value in values.items():
        old = document.get(key, MISSING)
        if isinstance(value, dict) and isinstance(old, dict):
            _write(old, value)
        elif isinstance(value, list) and isinstance(old, list) and old != value:
            old[:] = value
        elif old is MISSING or _spelled(old) != _spelled(value):
            document[key] = value


def _lock(sides: Sides) -> tuple[bytes, list[str]]:
    """The merged text, and the stages of which each side has another record: it has neither."""
    base, ours, theirs = sides.read(_records)
    stages, again = dict[str, Any](), list[str]()
    for name in dict.fromkeys([*ours["stages"], *theirs["stages"]]):
        before, here, there = (side["stages"].get(name) for side in (base, ours, theirs))
        if here == there or there == before:
            record = here
        elif here == before:
            record = there
        else:
            record = None
            again += [name] if here and there else []  # else one side has removed it
        if record is not None:
            stages[name] = record
    from dvc.utils.serialize import dumps_yaml

    # what else DVC may keep there is as it is here, unless it was changed there alone
    others = {key: ours[key] if ours[key] != base.get(key) else theirs.get(key, ours[key]) for key in ours}
    return dumps_yaml(others | {"stages": stages}).encode(), again


def _records(text: bytes, side: str) -> dict[str, Any]:
    try:
        found = YAML(typ="safe").load(text.decode()) or {}
    except (YAMLError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.setdefault("stages", {}), dict):
        raise InputError(
            f"{LOCK} of {side}: is no lock of DVC; take one side by 'git checkout --ours {LOCK}' and 'git add {LOCK}', "
            "and 'dvc repro' makes what it lacks"
        )
    return found

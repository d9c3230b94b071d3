"""`atelier promote`, `rollback` and `history`: which version bears an alias, by rules and with a way back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config import Promote
from atelier.errors import AtelierError, InputError
from atelier.registry.copy import copy_version
from atelier.registry.gates import Gate, judge
from atelier.registry.history import Change, History, append, read_history, settle
from atelier.registry.register import PACKAGE_TAG
from atelier.registry.versions import find_versions, metrics_of, pick_version, require_versions
from atelier.tracking import client, mlflow_errors, require_store, store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def promote(
    name: str,
    version: int | None,
    alias: str,
    settings: Promote,
    root: Path,
    say: Callable[[str], None],
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    to_registry: str | None = None,
) -> list[Gate]:
    """Make a version, by default the newest, the champion if it passes every gate.

    Args:
        name: the registered model.
        version: which one; None for the newest.
        alias: what it is promoted to.
        settings: the gates.
        root: the workspace.
        say: tells the person.
        reason: recorded.
        force: promote although a gate is not passed; recorded.
        dry_run: judge and change nothing.
        to_registry: the URI of another environment's registry, where the version is copied to and has to be better
            than the champion there.

    Raises:
        InputError: if there is no such version, or it bears no figures.
        AtelierError: if a gate is not passed, another promotion came first, or MLflow does not answer.
    """
    require_store(root)
    if to_registry and not re.match(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://", to_registry):
        raise InputError(
            f"--to-registry {to_registry}: give the URI of an MLflow server, https://…, or of its database"
        )
    with mlflow_errors(root):
        candidate = pick_version(client(root), name, version, root)
    with store(to_registry) if to_registry else nullcontext(), mlflow_errors(root):
        mlflow_client = client(root)
        history = read_history(mlflow_client, name, alias) if dry_run else settle(mlflow_client, name, alias)
        champion = find_versions(mlflow_client, name).get(history.champion or 0)
        if champion is not None and _same(candidate, champion):
            say(f"models:/{name}/{champion.version} is the {alias} already")
            return []
        gates = judge(metrics_of(candidate), metrics_of(champion) if champion else None, settings)
        against = f"models:/{name}/{champion.version}" if champion else None
        for line in table(gates, f"models:/{name}/{candidate.version}", against).splitlines():
            say(line)
        failed = [gate for gate in gates if not gate.passed]
        if failed and not force:
            raise AtelierError(
                f"models:/{name}/{candidate.version} is not promoted: " + "; ".join(map(sentence, failed))
            )
    if dry_run:
        say("dry run: nothing was changed")
        return gates
    if to_registry:
        candidate = copy_version(candidate, to_registry, root, say)
    with store(to_registry) if to_registry else nullcontext(), mlflow_errors(root):
        recorded = [dataclasses.asdict(gate) for gate in gates]
        number = int(candidate.version)
        append(client(root), name, alias, history, "promote", number, reason, bool(failed), recorded)
    say(f"models:/{name}@{alias} is version {number}")
    return gates


def _same(candidate: ModelVersion, champion: ModelVersion) -> bool:
    """Whether they are one version, or in two registries copies of each other."""
    if PACKAGE_TAG in candidate.tags and PACKAGE_TAG in champion.tags:
        return bool(candidate.tags[PACKAGE_TAG] == champion.tags[PACKAGE_TAG])
    return bool(candidate.version == champion.version)


def rollback(name: str, alias: str, root: Path, say: Callable[[str], None], reason: str = "") -> int:
    """Restore the champion before the present one; versions that were deleted since are passed over.

    Raises:
        InputError: if there is no such registered model.
        AtelierError: if there is none, another change came first, or MLflow does not answer.
    """
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        versions = require_versions(mlflow_client, name, root)
        history = settle(mlflow_client, name, alias)
        earlier = [number for number in history.champions[:-1] if number in versions]
        if not earlier:
            raise AtelierError(f"models:/{name}@{alias}: there was no champion before; see 'atelier history {name}'")
        append(mlflow_client, name, alias, history, "rollback", earlier[-1], reason)
        say(f"models:/{name}@{alias} is version {earlier[-1]} again")
        return earlier[-1]


def read(name: str, alias: str, root: Path) -> History:
    """The history of an alias.

    Raises:
        InputError: if there is no such registered model.
        AtelierError: if MLflow does not answer.
    """
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        require_versions(mlflow_client, name, root)
        return read_history(mlflow_client, name, alias)


def sentence(gate: Gate) -> str:
    """A gate in words."""
    return f"{gate.metric} {gate.found}, must be {gate.rule}"


def table(gates: list[Gate], candidate: str, champion: str | None) -> str:
    """The gates as text."""
    lines = [f"{candidate} against {champion or 'no champion yet'}"]
    width = max((len(gate.metric) for gate in gates), default=0)
    found = max((len(gate.found) for gate in gates), default=0)
    for gate in gates:
        lines.append(f"{'pass' if gate.passed else 'FAIL'}  {gate.metric:{width}}  {gate.found:{found}}  {gate.rule}")
    return "\n".join(lines)


def history_table(history: History, name: str, alias: str) -> str:
    """The history as text, the newest change first."""
    stands = f"is version {history.champion}" if history.champion else "stands nowhere yet"
    lines = [f"models:/{name}@{alias} {stands}"]
    for change in reversed(history.changes):
        lines.append(_history_line(change, change.number in history.effective))
    return "\n".join(lines)


def _history_line(change: Change, effective: bool) -> str:
    what = {"promote": "promoted", "rollback": "back to"}[change.action]
    notes = [] if effective else ["void: another came first"]
    notes += [f"forced past {', '.join(g['metric'] for g in change.gates if not g['passed'])}"] if change.forced else []
    notes += [change.reason] if change.reason else []
    return f"{change.number:4}  {change.at}  {change.by}  {what} version {change.version}" + "".join(
        f"; {note}" for note in notes
    )

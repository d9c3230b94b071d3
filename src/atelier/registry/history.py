"""Who was champion when: an append-only history in the MLflow registry, which an alias follows.

An MLflow alias can be set by two people at once, the later one silently winning: MLflow compares nothing before it
sets. But it hands out version numbers one at a time, by a unique key of its database, on SQLite, PostgreSQL and over
HTTP alike, and stores a version's tags in the same transaction. So each change of an alias is a version of the one
registered model `LOG`: its number is its place among all changes, its source the version that became champion, and its
tags say which alias, who, when, why, and after which change it was decided. If another change of this alias came in
between, it is void; every reader sees the same order and comes to the same conclusion. The alias only repeats what the
history says. A history that an older atelier began, in a registered model `NAME.ALIAS` of its own, goes on there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from atelier.errors import AtelierError
from atelier.processes import retry
from atelier.registry.gates import Gate
from atelier.registry.lineage import uri_of, version_or_none
from atelier.tracking import ensure_registered_model, equals, every
from atelier.tracking.origin import user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LOG = "atelier.history"
TAG = "atelier.change"
OF_TAG = "atelier.alias"  # NAME@ALIAS
ATTEMPTS = 40
Action = Literal["promote", "rollback"]


class OtherChangeFirst(AtelierError):
    """An alias is not what a change of it was decided on: decide anew."""


@dataclass(frozen=True)
class Change:
    """One line of the history: `version` was to become the champion, as decided after change number `after`."""

    number: int
    id: str
    action: Action
    version: int
    after: int
    before: int | None  # where the alias stood when there was no history yet
    by: str
    at: str
    reason: str
    forced: bool
    gates: list[Gate]


@dataclass(frozen=True)
class History:
    """All changes in order, and what they come to."""

    changes: list[Change]
    effective: list[int]  # the numbers of those that are not void
    champions: list[int]  # versions, the present champion last, those a rollback returns to before it
    deleted: bool = False  # the present champion was deleted since: the alias stands nowhere

    @property
    def champion(self) -> int | None:
        """The present champion's version."""
        return self.champions[-1] if self.champions else None

    def to_json(self) -> str:
        """The history as JSON, and who is champion."""
        return json.dumps(dataclasses.asdict(self) | {"champion": None if self.deleted else self.champion})

    def lines(self, name: str, alias: str) -> list[str]:
        """The history as text, the newest change first."""
        stands = f"is version {self.champion}" if self.champion else "stands nowhere yet"
        if self.deleted:
            stands = (
                f"stands nowhere: its version {self.champion} was deleted; 'atelier rollback' goes to the one before"
            )
        changes = [_line(change, change.number in self.effective) for change in reversed(self.changes)]
        return [f"models:/{name}@{alias} {stands}", *changes]


def _line(change: Change, effective: bool) -> str:
    what = {"promote": "promoted", "rollback": "back to"}[change.action]
    notes = [] if effective else ["void: another came first"]
    notes += [f"forced past {', '.join(g.metric for g in change.gates if not g.passed)}"] if change.forced else []
    notes += [change.reason] if change.reason else []
    return f"{change.number:4}  {change.at}  {change.by}  {what} version {change.version}" + "".join(
        f"; {note}" for note in notes
    )


def entries_of(mlflow_client: MlflowClient, name: str, alias: str) -> list[ModelVersion]:
    """The versions that are the history of `NAME@ALIAS`."""
    if former := _former_entries(mlflow_client, name, alias):
        return former
    condition = f"{equals('name', LOG)} and {equals(f'tags.`{OF_TAG}`', f'{name}@{alias}')}"
    return list(every(mlflow_client.search_model_versions, condition))


def _former_entries(mlflow_client: MlflowClient, name: str, alias: str) -> list[ModelVersion]:
    """Those in a registered model of their own, where an older atelier began it."""
    found = every(mlflow_client.search_model_versions, equals("name", f"{name}.{alias}"))
    return [entry for entry in found if TAG in entry.tags]


def alias_of(entry: ModelVersion) -> tuple[str, str]:
    """Name and alias that a change is of."""
    name, _, alias = entry.tags[OF_TAG].rpartition("@") if OF_TAG in entry.tags else entry.name.rpartition(".")
    return name, alias


def read_history(mlflow_client: MlflowClient, name: str, alias: str) -> History:
    """Read all changes; before the first, the champion is whatever the alias was set to by hand."""
    changes = [_change(entry) for entry in entries_of(mlflow_client, name, alias)]
    history = replay(sorted(changes, key=lambda change: change.number))
    if not history.changes and (by_hand := alias_version(mlflow_client, name, alias)) is not None:
        return History([], [], [by_hand])
    return history


def _change(entry: ModelVersion) -> Change:
    try:
        return TypeAdapter(Change).validate_python({"number": int(entry.version), **json.loads(entry.tags[TAG])})
    except (ValueError, TypeError, RecursionError):
        raise AtelierError(f"{uri_of(entry)}: its tag {TAG} is damaged; delete this version in MLflow") from None


def replay(changes: list[Change]) -> History:
    """What changes, in their order, come to. A change decided before the last effective one was known is void."""
    effective: list[int] = []
    champions: list[int] = []
    for change in changes:
        if change.after < (effective[-1] if effective else 0):
            continue
        if not effective and change.before is not None:
            champions = [change.before]
        if change.action == "promote":
            champions.append(change.version)
        elif change.version not in champions[:-1]:
            continue
        else:
            champions.pop()
            while champions[-1] != change.version:  # versions deleted since were passed over
                champions.pop()
        effective.append(change.number)
    return History(changes, effective, champions)


def append(
    mlflow_client: MlflowClient,
    name: str,
    alias: str,
    known: History,
    action: Action,
    version: int,
    reason: str,
    forced: bool = False,
    gates: list[Gate] | None = None,
) -> Change:
    """Add a change decided on `known`, and let the alias follow.

    Raises:
        OtherChangeFirst: if another change came first; the message says which.
    """
    content = {
        "id": uuid.uuid4().hex,
        "action": action,
        "version": version,
        "after": known.effective[-1] if known.effective else 0,
        "before": None if known.effective else known.champion,
        "by": user_name(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": reason,
        "forced": forced,
        "gates": [dataclasses.asdict(gate) for gate in gates or []],
    }
    _append_once(mlflow_client, name, alias, content)
    history = settle(mlflow_client, name, alias)
    change = next(change for change in history.changes if change.id == content["id"])
    if change.number in history.effective:
        return change
    first = next(c for c in history.changes if c.number in history.effective and c.number > change.after)
    raise OtherChangeFirst(
        f"{name}@{alias}: not changed, {first.by} came first with version {first.version} (change {first.number}); "
        f"see 'atelier history {name}' and decide again"
    )


def _append_once(mlflow_client: MlflowClient, name: str, alias: str, content: dict[str, Any]) -> None:
    """Make the version that records a change; under contention MLflow gives up early, so try again."""
    from mlflow.exceptions import MlflowException

    log = f"{name}.{alias}" if _former_entries(mlflow_client, name, alias) else LOG
    ensure_registered_model(
        mlflow_client, log, "Who was champion when: a version per change, written by atelier promote."
    )
    tags = {TAG: json.dumps(content), OF_TAG: f"{name}@{alias}"}
    source = f"models:/{name}/{content['version']}"

    def contended(error: Exception) -> bool:
        return isinstance(error, MlflowException) and any(
            words in str(error) for words in ("Giving up after", "database is locked")
        )

    retry(
        lambda: mlflow_client.create_model_version(log, source, tags=tags, await_creation_for=0),
        contended,
        [0.05 * (1 + os.getpid() % 7)] * ATTEMPTS,
    )


def settle(mlflow_client: MlflowClient, name: str, alias: str) -> History:
    """Set the alias to what the history says, until no other change came meanwhile.

    Whoever sets it last reads the history once more and finds nothing new, so that what stays is what the history
    says; a process killed before that leaves it to the next command. To a champion that was deleted it is not set.
    """
    from mlflow.exceptions import MlflowException

    history = read_history(mlflow_client, name, alias)
    while history.champion is not None and history.changes:
        before = alias_version(mlflow_client, name, alias)
        if before != history.champion:
            try:
                mlflow_client.set_registered_model_alias(name, alias, str(history.champion))
            except MlflowException:
                if version_or_none(mlflow_client, name, history.champion) is None:
                    return dataclasses.replace(history, deleted=True)
                # of those who set it for the first time at once, MLflow fails all but one
                if before is not None or alias_version(mlflow_client, name, alias) is None:
                    raise
                continue
        again = read_history(mlflow_client, name, alias)
        if again == history:
            break
        history = again
    return history


def alias_version(mlflow_client: MlflowClient, name: str, alias: str) -> int | None:
    """Which version an alias stands for; None if it is not set."""
    from mlflow.exceptions import MlflowException

    try:
        version = mlflow_client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return int(version) if version is not None else None

"""`atelier promote`, `rollback` and `history`: which version bears an alias, by rules and with a way back."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.config import Promote
from atelier.config.records import ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.evaluation.metrics import cost, why_not_comparable
from atelier.own_code import require_code
from atelier.registry.gates import Gate, judge
from atelier.registry.history import History, append, read_history, settle
from atelier.registry.lineage import (
    METRICS_TAG,
    ORIGIN_TAG,
    PACKAGE_TAG,
    existing_version,
    judged,
    make_version,
    newest_version,
    pick_version,
    uri_of,
    version_or_none,
)
from atelier.registry.package import PACKAGE, description, downloaded, fetched, log_package, smoke_test
from atelier.tracking import (
    check_uri,
    client,
    ensure_run,
    equals,
    every,
    mlflow_errors,
    public_uri,
    require_store,
    run_params,
    tracking_uri,
    using,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Decision:
    """What came of judging a version: whether the alias stands for it now, and how it did at each gate."""

    name: str
    version: int
    alias: str
    promoted: bool
    gates: list[Gate]

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(dataclasses.asdict(self))


class GatesNotPassed(AtelierError):
    """A version did not pass every gate."""

    def __init__(self, decision: Decision) -> None:
        failed = "; ".join(sentence(gate) for gate in decision.gates if not gate.passed)
        super().__init__(f"models:/{decision.name}/{decision.version} is not promoted: {failed}")
        self.decision = decision


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
    best: bool = False,
) -> Decision:
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
        best: take the version that is best by the first metric of `better`, in place of the newest.

    Raises:
        InputError: if there is no such version, or it bears no figures.
        GatesNotPassed: if a gate is not passed.
        AtelierError: if another promotion came first, or MLflow does not answer.
    """
    require_store(root)
    if to_registry and not re.match(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://", to_registry):
        where = public_uri(to_registry)
        raise InputError(f"--to-registry {where}: give the URI of an MLflow server, https://…, or of its database")
    check_uri(to_registry or "", "--to-registry")
    with mlflow_errors(root):
        if best:
            candidate = best_version(client(root), name, settings, root)
        else:
            candidate = pick_version(client(root), name, version, root)
    with using(to_registry) if to_registry else nullcontext(), mlflow_errors(root):
        mlflow_client = client(root)
        history = read_history(mlflow_client, name, alias) if dry_run else settle(mlflow_client, name, alias)
        champion = _last(mlflow_client, name, history.champions)
        if champion is not None and _same(candidate, champion):
            if int(champion.version) == history.champion:
                say(f"{uri_of(champion)} is the {alias} already")
                return Decision(name, int(champion.version), alias, True, [])
            champion = None  # it was once, and the one after it is deleted
        gates = judge(judged(candidate), judged(champion) if champion else None, settings)
        for line in table(gates, uri_of(candidate), uri_of(champion) if champion else None):
            say(line)
        failed = [gate for gate in gates if not gate.passed]
        if failed and not force:
            raise GatesNotPassed(Decision(name, int(candidate.version), alias, False, gates))
    if dry_run:
        say("dry run: nothing was changed")
        return Decision(name, int(candidate.version), alias, False, gates)
    if to_registry:
        candidate = copy_version(candidate, to_registry, root, say)
    with using(to_registry) if to_registry else nullcontext(), mlflow_errors(root):
        number = int(candidate.version)
        append(client(root), name, alias, history, "promote", number, reason, bool(failed), gates)
    say(f"models:/{name}@{alias} is version {number}")
    return Decision(name, number, alias, True, gates)


def best_version(mlflow_client: MlflowClient, name: str, settings: Promote, root: Path) -> ModelVersion:
    """The best by the first metric of `better`, of the versions that were measured as the newest was.

    Raises:
        InputError: if there is no version, no such metric, or the newest bears no report.
    """
    newest = newest_version(mlflow_client, name, root)
    report = judged(newest).report
    if not settings.better or report is None or settings.better[0] not in report.metrics:
        raise InputError(f"{uri_of(newest)}: no metric of promote.better to tell the best by; name a --version")
    metric = settings.better[0]
    alike: list[tuple[float, int, ModelVersion]] = []
    for version in every(mlflow_client.search_model_versions, equals("name", name)):
        its = judged(version).report if METRICS_TAG in version.tags else None
        if its is not None and why_not_comparable(its, report, metric) is None:
            alike.append((cost(metric, its.metrics[metric].mean, its.own), int(version.version), version))
    return min(alike, key=lambda one: one[:2])[2]


def _last(mlflow_client: MlflowClient, name: str, champions: Iterable[int]) -> ModelVersion | None:
    """The last of these versions that was not deleted."""
    found = (version_or_none(mlflow_client, name, number) for number in reversed(list(champions)))
    return next((version for version in found if version is not None), None)


def _same(candidate: ModelVersion, champion: ModelVersion) -> bool:
    """Whether they are one version, or in two registries copies of each other."""
    if PACKAGE_TAG in candidate.tags and PACKAGE_TAG in champion.tags:
        return bool(candidate.tags[PACKAGE_TAG] == champion.tags[PACKAGE_TAG])
    return bool(candidate.version == champion.version)


def copy_version(version: ModelVersion, to_registry: str, root: Path, say: Callable[[str], None]) -> ModelVersion:
    """Copy a version of the workspace's registry; one that is there already is not copied again.

    The version is made last, once its artifacts came back from there unaltered and drew images in a fresh process.

    Raises:
        InputError: if its model is the user's own, and its code is not here.
        AtelierError: if either registry does not answer, or the artifacts are not those that were registered.
    """
    here, there = public_uri(tracking_uri(root)), public_uri(to_registry)
    with mlflow_errors(root), fetched(client(root), version, root) as package:
        config = ModelConfig.read(package / "model" / "config.json", "atelier register")
        require_code(config, package / "model", root)  # it is tried below: no other code than what is here is run
        tags = version.tags | {ORIGIN_TAG: f"{uri_of(version)} in {here}"}
        with using(to_registry), mlflow_errors(root):
            target = client(root)
            if (former := existing_version(target, version.name, tags)) is not None:
                return former
            run_id = ensure_run(root, config.run, run_params(config), None)
            made = log_package(run_id, package, config)
            target.set_terminated(run_id)
            with downloaded(made.model_uri, version.tags[PACKAGE_TAG], f"{PACKAGE} in {there}"):
                smoke_test(root, made.model_uri)
            card = (package / "MODEL_CARD.md").read_text(encoding="utf-8")
            copy = make_version(target, version.name, made, run_id, tags, description(card, made.model_id))
    say(f"copied {uri_of(version)} to {there} as version {copy.version}")
    return copy


def rollback(name: str, alias: str, root: Path, say: Callable[[str], None], reason: str = "") -> int:
    """Restore the champion before the present one; versions that were deleted since are passed over.

    Raises:
        InputError: if there is no such registered model.
        AtelierError: if there is none, another change came first, or MLflow does not answer.
    """
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        newest_version(mlflow_client, name, root)
        history = settle(mlflow_client, name, alias)
        earlier = _last(mlflow_client, name, history.champions[:-1])
        if earlier is None:
            raise AtelierError(f"models:/{name}@{alias}: there was no champion before; see 'atelier history {name}'")
        number = int(earlier.version)
        append(mlflow_client, name, alias, history, "rollback", number, reason)
        say(f"models:/{name}@{alias} is version {number} again")
        return number


def read(name: str, alias: str, root: Path) -> History:
    """The history of an alias.

    Raises:
        InputError: if there is no such registered model.
        AtelierError: if MLflow does not answer.
    """
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        newest_version(mlflow_client, name, root)
        history = read_history(mlflow_client, name, alias)
        deleted = history.champion is not None and version_or_none(mlflow_client, name, history.champion) is None
        return dataclasses.replace(history, deleted=deleted)


def sentence(gate: Gate) -> str:
    """A gate in words."""
    return f"{gate.metric} {gate.found}, must be {gate.rule}"


def table(gates: list[Gate], candidate: str, champion: str | None) -> list[str]:
    """The gates as lines of text."""
    lines = [f"{candidate} against {champion or 'no champion yet'}"]
    width = max((len(gate.metric) for gate in gates), default=0)
    found = max((len(gate.found) for gate in gates), default=0)
    for gate in gates:
        lines.append(f"{'pass' if gate.passed else 'FAIL'}  {gate.metric:{width}}  {gate.found:{found}}  {gate.rule}")
    return lines

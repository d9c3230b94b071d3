"""What in MLflow nobody needs any more: versions and runs beyond a rule, and artifacts that nothing names.

Never a version that an alias or its history names, that another one was trained from, or that a model in the workspace
is. In the workspace's own store everything is the workspace's; on a server only what its trainings fed.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from atelier.config import Params
from atelier.config.records import ModelConfig
from atelier.files import files_below, owner
from atelier.journal import record_folder
from atelier.registry.history import TAG as CHANGE_TAG
from atelier.registry.history import alias_of, read_history
from atelier.registry.lineage import PARENT_TAG, WEIGHTS_TAG, parse_uri, uri_of, version_or_none
from atelier.tracking import client, every, mlflow_errors, origin, tracking_uri
from atelier.tracking.runs import RunRecord, has_ended
from atelier.tracking.store import DATABASE, EXPERIMENT, artifacts_folder, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.logged_model import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DAY_MILLISECONDS = 86_400_000
LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")
RUN = re.compile(r"[0-9a-f]{32}")
Key = tuple[str, int]  # of a version: its registered model and number


@dataclass(frozen=True)
class Unused:
    """Something that can go.

    Attributes:
        kind: of things, in words.
        name: of this one.
        bytes: of its files.
        remove: removes it; if it is killed, what is left of it is found again.
    """

    kind: str
    name: str
    bytes: int
    remove: Callable[[], object]


@dataclass(frozen=True)
class Rule:
    """Which versions and runs are too many.

    Attributes:
        versions: of each registered model so many stay, the newest; None: all.
        days: MLflow runs without a version stay so long after their end; None: for ever.
        is_everyones: also what others made.
    """

    versions: int | None = None
    days: float | None = None
    is_everyones: bool = False


class Models:
    """The trained models that lie in a workspace, and what of MLflow they are tied to."""

    def __init__(self, params: Params, root: Path) -> None:
        self.home = owner(root)
        files = [*root.glob("models/*/config.json"), *root.glob("models/*/trainings/*/config.json")]
        configs = [ModelConfig.read(path, "atelier train") for path in files]
        self.records = {record_folder(root, config.run, config.sampler_sha256) for config in configs}
        self.weights = {config.sampler_sha256 for config in configs}
        self.parents = {config.parent_sha256 for config in configs if config.parent_sha256}
        inits = [parse_uri(init) for name in params.runs if (init := params.run(name).init).startswith("models:/")]
        self.inits = {(name, int(number)) for name, number, _ in inits if number}

    def recorded_runs(self) -> set[str]:
        """The MLflow runs that trainings of this workspace fed, by id, as far as it has records of them."""
        return _run_ids(itertools.chain(self.home.glob("runs/*/*"), self.home.glob("checkpoints/**/")))

    def needed_runs(self) -> set[str]:
        """Those of its models, and those that trainings would go on with."""
        return _run_ids(itertools.chain(self.records, self.home.glob("checkpoints/**/")))


def _run_ids(folders: Iterator[Path]) -> set[str]:
    records = (RunRecord.find(folder) for folder in folders)
    return {record.run_id for record in records if record is not None and record.run_id is not None}


class Mlflow:
    """What there is in MLflow, listed once, and what of it can go.

    Args:
        models: of the workspace.
        rule: for versions and runs.
        root: the workspace.

    Raises:
        AtelierError: if MLflow does not answer, or something that has a say in it is damaged.
    """

    def __init__(self, models: Models, rule: Rule, root: Path) -> None:
        from mlflow.entities import ViewType

        self.client, self.models, self.rule, self.root = client(root), models, rule, root
        self.file = sqlite_file(tracking_uri(root))
        self.is_own = self.file == (models.home / DATABASE).resolve()
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        experiments = [experiment.experiment_id] if experiment else []
        runs = every(self.client.search_runs, experiments, run_view_type=ViewType.ALL) if experiments else ()
        logged = every(self.client.search_logged_models, experiments) if experiments else ()
        self.runs: dict[str, Run] = {run.info.run_id: run for run in runs}
        self.logged: dict[str, LoggedModel] = {one.model_id: one for one in logged}
        self.versions: list[ModelVersion] = list(every(self.client.search_model_versions))
        self.recorded = models.recorded_runs()
        self.surplus = self._surplus_versions()
        self.named = {_logged_model_of(version) for version in self.staying}
        self.needed = models.needed_runs() | {version.run_id for version in self.staying}
        self.old_runs = self._old_runs()

    @property
    def staying(self) -> list[ModelVersion]:
        """The versions that stay."""
        return [version for version in self.versions if _key(version) not in self.surplus]

    def has(self, run_id: str) -> bool:
        """Whether there is such a run, that stays."""
        return run_id in self.runs and run_id not in self.old_runs

    def _is_ours(self, run_id: str | None) -> bool:
        return self.is_own or self.rule.is_everyones or run_id in self.recorded

    def _surplus_versions(self) -> dict[Key, ModelVersion]:
        """Beyond the rule, and needed by nothing that stays."""
        if self.rule.versions is None:
            return {}
        kept = self._champions() | self.models.inits
        by_name: dict[str, list[ModelVersion]] = defaultdict(list)
        for version in self.versions:
            by_name[version.name].append(version)
        for found in by_name.values():
            found.sort(key=lambda version: int(version.version), reverse=True)
            kept |= {_key(version) for version in found[: self.rule.versions]}
        surplus = {
            _key(version): version
            for version in self.versions
            if _key(version) not in kept
            and WEIGHTS_TAG in version.tags  # else it is another program's, or a line of a history
            and version.tags[WEIGHTS_TAG] not in self.models.weights
            and self._is_ours(version.run_id)
        }
        while True:
            parents = self.models.parents | {
                version.tags.get(PARENT_TAG) for version in self.versions if _key(version) not in surplus
            }
            if not (needed := {key for key, version in surplus.items() if version.tags[WEIGHTS_TAG] in parents}):
                return surplus
            surplus = {key: version for key, version in surplus.items() if key not in needed}

    def _champions(self) -> set[Key]:
        """The versions that an alias stands for, or ever stood for."""
        found = {
            (model.name, int(number))
            for model in every(self.client.search_registered_models)
            for number in model.aliases.values()
        }
        for name, alias in {alias_of(version) for version in self.versions if CHANGE_TAG in version.tags}:
            found |= {(name, change.version) for change in read_history(self.client, name, alias).changes}
        return found

    def _old_runs(self) -> dict[str, Run]:
        """Ended longer ago than the rule says, of no version, and in none of them is one nested that stays."""
        if self.rule.days is None:
            return {}
        before = time.time() * 1000 - self.rule.days * DAY_MILLISECONDS
        old = {
            id_: run
            for id_, run in self.runs.items()
            if id_ not in self.needed
            and run.info.lifecycle_stage == "active"
            and self._is_ours(id_)
            and run.data.tags.keys() & {origin.HOST_TAG, origin.GROUP_TAG, origin.PIPELINE_TAG}
            and has_ended(run)
            and (run.info.end_time or run.info.start_time) < before
        }
        while True:
            parents = {run.data.tags.get(origin.PARENT_TAG) for id_, run in self.runs.items() if id_ not in old}
            if not (needed := old.keys() & parents):
                return old
            old = {id_: run for id_, run in old.items() if id_ not in needed}

    def unused(self) -> list[Unused]:
        """All that can go."""
        with mlflow_errors(self.root):
            return list(self._unused())

    def _unused(self) -> Iterator[Unused]:
        for version in self.surplus.values():
            model = self.logged.get(_logged_model_of(version))
            goes = model if model is not None and model.model_id not in self.named else None
            size = _bytes_at(goes.artifact_location) if goes else 0
            yield Unused("versions", uri_of(version), size, partial(self._remove_version, version, goes))
        for run in self.old_runs.values():
            size = _bytes_at(run.info.artifact_uri)
            yield Unused("MLflow runs", _words(run), size, partial(self._remove_run, run))
        yield from self._unnamed()
        if self.is_own:
            yield from self._trash()
            yield from self._without_row()

    def _unnamed(self) -> Iterator[Unused]:
        """Logged models that a registration which was killed or refused left behind."""
        of_versions = {_logged_model_of(version) for version in self.versions}
        for model in self.logged.values():
            run = self.runs.get(model.source_run_id or "")
            if (
                model.model_id not in of_versions
                and run is not None
                and origin.HOST_TAG in run.data.tags
                and self._is_ours(run.info.run_id)
                and has_ended(run)
            ):
                size = _bytes_at(model.artifact_location)
                yield Unused("models of no version", model.model_id, size, partial(self._remove_model, model))

    def _trash(self) -> Iterator[Unused]:
        """What was deleted, in MLflow's page or by a command, and not yet for good."""
        for id_, run in self.runs.items():
            if run.info.lifecycle_stage == "deleted" and id_ not in self.needed:
                size = _bytes_at(run.info.artifact_uri)
                yield Unused("MLflow's trash", _words(run), size, partial(self._remove_run, run))
        for id_ in self._store()._get_deleted_logged_models():
            model = self._store().get_logged_model(id_, allow_deleted=True)
            if id_ not in self.named:
                size = _bytes_at(model.artifact_location)
                yield Unused("MLflow's trash", id_, size, partial(self._remove_model, model))

    def _without_row(self) -> Iterator[Unused]:
        """Folders of runs and models that the database does not know."""
        from mlflow.entities import ViewType

        assert self.file is not None
        experiments = [one.experiment_id for one in every(self.client.search_experiments, ViewType.ALL)]
        known = {run.info.run_id for run in every(self.client.search_runs, experiments, run_view_type=ViewType.ALL)}
        known |= {model.model_id for model in every(self.client.search_logged_models, experiments)}
        known |= set(self._store()._get_deleted_logged_models())
        folder = artifacts_folder(self.file)
        # those of other experiments than ours lie below their number
        for path in sorted(path for place in ("*", "models/*", "*/*", "*/models/*") for path in folder.glob(place)):
            if (RUN.fullmatch(path.name) or LOGGED_MODEL.fullmatch(path.name)) and path.name not in known:
                size = sum(file.stat().st_size for file in files_below(path))
                yield Unused("artifacts of no run", str(path.relative_to(folder.parent)), size, partial(_remove, path))

    def _store(self) -> Any:
        """MLflow's own view of a database, by which what was deleted goes for good, as `mlflow gc` does it."""
        return self.client._tracking_client.store

    def _remove_version(self, version: ModelVersion, model: LoggedModel | None) -> None:
        with mlflow_errors(self.root):
            now = version_or_none(self.client, version.name, int(version.version))
            if now is not None and now.aliases:  # promoted since it was listed
                return
            if now is not None:
                self.client.delete_model_version(version.name, version.version)
            if model is not None:
                self._remove_model(model)

    def _remove_model(self, model: LoggedModel) -> None:
        """The files first: a model whose row is there is found again."""
        with mlflow_errors(self.root):
            self._remove_artifacts(model.artifact_location)
            self.client.delete_logged_model(model.model_id)
            if self.is_own:
                self._store()._hard_delete_logged_model(model.model_id)

    def _remove_run(self, run: Run) -> None:
        with mlflow_errors(self.root):
            self._remove_artifacts(run.info.artifact_uri)
            if run.info.lifecycle_stage == "active":
                self.client.delete_run(run.info.run_id)
            if self.is_own:
                self._store()._hard_delete_run(run.info.run_id)

    def _remove_artifacts(self, location: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(location).delete_artifacts()
        if self.is_own:  # the folder that they lay in bears the name of their run
            with contextlib.suppress(OSError):
                Path(unquote(urlsplit(location).path)).parent.rmdir()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _key(version: ModelVersion) -> Key:
    return version.name, int(version.version)


def _logged_model_of(version: ModelVersion) -> str:
    """The logged model whose files a version has; empty if it is of none."""
    found = LOGGED_MODEL.search(version.model_id or version.source or "")
    return found[0] if found else ""


def _words(run: Run) -> str:
    ended = time.strftime("%Y-%m-%d", time.localtime((run.info.end_time or run.info.start_time) / 1000))
    return f"{run.info.run_name} {run.info.run_id} ({run.info.status}, {ended})"


def _bytes_at(location: str) -> int:
    """Of all files at an artifact URI."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location)

    def below(path: str | None) -> int:
        return sum(below(one.path) if one.is_dir else one.file_size or 0 for one in repository.list_artifacts(path))

    return below(None)

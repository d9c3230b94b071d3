"""`atelier gc`: what in a workspace, in MLflow and in DVC's cache nobody needs any more.

Each thing is found from what is there now, and goes by itself: a `gc` that was killed is run again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.config import Params
from atelier.errors import AtelierError, InputError
from atelier.files import files_below, held_by, hold, is_running, owner, remove_folder
from atelier.registry.lineage import COMMIT_TAG, DATA_TAG
from atelier.registry.unused import Mlflow, Models, Rule, Unused
from atelier.runs import PLACES
from atelier.tracking import mlflow_errors, require_store
from atelier.tracking.runs import RunRecord

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# what writers leave that are killed: `atelier.files` names it so
KILLED = re.compile(r"\.(?P<target>.+)\.(?P<pid>\d+)\.(partial|removed)")
WRITTEN = ("", "data/raw", "data/prepared", "reference", "models", "reports", "registry", "checkpoints", "search")


def unused(params: Params, root: Path, rule: Rule) -> list[Unused]:
    """All that can go, by kind.

    Raises:
        AtelierError: if MLflow or DVC does not answer, or something that has a say in it is damaged.
    """
    models = Models(params, root)
    mlflow = _mlflow(models, rule, root)
    return [
        *_killed(root),
        *_checkpoints(params, root),
        *_searches(params, root),
        *(mlflow.unused() if mlflow else ()),
        *_records(params, models, mlflow),  # by which MLflow's are found
        *_cache(mlflow.staying if mlflow else [], rule, root),
    ]


def _mlflow(models: Models, rule: Rule, root: Path) -> Mlflow | None:
    try:
        require_store(root)
    except InputError:  # nothing was ever written there
        return None
    with mlflow_errors(root):
        return Mlflow(models, rule, root)


def _killed(root: Path) -> Iterator[Unused]:
    """What killed commands had not yet put into place, or not yet removed."""
    for folder in WRITTEN:
        for path in sorted((root / folder).glob(".*")):
            found = KILLED.fullmatch(path.name)
            if found and not is_running(int(found["pid"])):
                target = path.with_name(found["target"])
                yield Unused("of killed commands", _name(path, root), _bytes(path), partial(_tidy, target))


def _tidy(target: Path) -> None:
    with hold(target):  # which removes it
        pass


def _checkpoints(params: Params, root: Path) -> Iterator[Unused]:
    """Trainings that nobody can go on with: params.yaml has their runs no more."""
    for path in sorted((root / "checkpoints").glob("[!.]*")):
        if path.name not in params.runs and held_by(path) is None and not _is_trial(path.name, params, root):
            yield _folder("checkpoints of runs that are no more", path, root)


def _is_trial(run: str, params: Params, root: Path) -> bool:
    """Whether a run is a trial of a search that params.yaml has."""
    return any((root / "search" / name / f"{run[len(name) + 1 :]}.yaml").is_file() for name in params.search)


def _searches(params: Params, root: Path) -> Iterator[Unused]:
    """Searches that params.yaml has no more, their trials first: by the search's folder they are found."""
    for folder in sorted((root / "search").glob("[!.]*")):
        if folder.name in params.search or held_by(folder) is not None:
            continue
        for file in sorted(folder.glob("*.yaml")):
            trial = f"{folder.name}-{file.stem}"
            for place in PLACES:
                path = root / place.format(trial)
                if trial not in params.runs and path.is_dir() and held_by(path) is None:
                    yield _folder("searches that are no more", path, root)
        yield _folder("searches that are no more", folder, root)


def _records(params: Params, models: Models, mlflow: Mlflow | None) -> Iterator[Unused]:
    """What is recorded of models that lie nowhere here, of runs that are no more.

    On a server, such a record says which of MLflow's runs are the workspace's: it stays as long as its run does.
    """
    for path in sorted(models.home.glob("runs/*/*")):
        if path.parent.name in params.runs or path in models.records:
            continue
        record = RunRecord.find(path)
        if mlflow is None or mlflow.is_own or record is None or not mlflow.has(record.run_id or ""):
            yield _folder("records of runs that are no more", path, models.home)


def _folder(kind: str, path: Path, root: Path) -> Unused:
    return Unused(kind, _name(path, root), _bytes(path), partial(_remove, path))


def _remove(path: Path) -> None:
    with hold(path):
        remove_folder(path)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # of a run's last record


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else files_below(path)))


def _cache(versions: Iterable[ModelVersion], rule: Rule, root: Path) -> Iterator[Unused]:
    """Files in DVC's cache that neither the workspace, nor a branch, a tag, an experiment or a version has."""
    if not any((folder / ".dvc").is_dir() for folder in (root.resolve(), *root.resolve().parents)):
        return
    tags = [version.tags for version in versions]
    commits = {one[COMMIT_TAG] for one in tags if COMMIT_TAG in one}
    data = {md5 for one in tags for key, md5 in one.items() if key.startswith(DATA_TAG)}
    count, size = _sweep(root, commits, data, rule.is_everyones, really=False)
    if count:
        sweep = partial(_sweep, root, commits, data, rule.is_everyones, really=True)
        yield Unused("DVC's cache", f"{count:,} files", size, sweep)


def _sweep(root: Path, commits: set[str], data: set[str], is_everyones: bool, *, really: bool) -> tuple[int, int]:
    """`dvc gc --all-branches --all-tags --all-experiments`, with these commits and folders of data kept too.

    Returns:
        How many files no one needs, and their bytes.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM
    from dvc_data.hashfile.gc import gc
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree
    from scmrepo.exceptions import SCMError

    count = size = 0
    try:
        with contextlib.chdir(owner(root)), Repo(_wait_for_lock=True) as repository, repository.lock:
            scope: dict[str, Any] = {}
            if not isinstance(repository.scm, NoSCM) and _has_commit(repository.scm, "HEAD"):
                revisions = [commit for commit in sorted(commits) if _has_commit(repository.scm, commit)]
                scope = {"revs": revisions, "all_branches": True, "all_tags": True, "all_experiments": True}
            used = set().union(*repository.used_objs(**scope, force=True).values())
            home = Path(repository.root_dir).resolve()
            for cache in {id(odb): odb for _, odb in repository.cache.by_scheme() if odb}.values():
                if cache.fs.protocol != "local" or not (
                    is_everyones or Path(cache.path).resolve().is_relative_to(home)
                ):
                    continue
                for folder in (HashInfo("md5", md5) for md5 in data if cache.exists(md5)):
                    used |= {folder, *(found for _, _, found in Tree.load(cache, folder))}
                kept = {one.value for one in used if one.name == cache.hash_name}
                sizes = [Path(cache.oid_to_path(oid)).stat().st_size for oid in cache.all() if oid not in kept]
                count, size = count + len(sizes), size + sum(sizes)
                if really:
                    gc(cache, used)
    except (DvcException, SCMError) as error:
        raise AtelierError(f"DVC in {root}: {error}") from None
    return count, size


def _has_commit(scm: Any, commit: str) -> bool:
    """Whether git has it still."""
    from dvc.scm import RevError, resolve_rev
    from scmrepo.exceptions import SCMError

    try:
        return bool(resolve_rev(scm, commit))
    except (RevError, SCMError):
        return False

"""`atelier init` and `upgrade`: a workspace that a team commits, from templates: pipeline, image, CI, cluster.

What `init` wrote stands in `.atelier.json` too: a later version merges what it would write now into what became of it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import atelier
from atelier.config import CLASSIFIER, LITE0, load_params
from atelier.config.catalogue import DATASETS
from atelier.config.reading import nearest
from atelier.config.records import Record
from atelier.data.look import look
from atelier.errors import InputError
from atelier.evaluation.metrics import metric_name
from atelier.extras import DISTRIBUTION
from atelier.files import LITTER, atomic_directory, files_below, to_json, write_atomic
from atelier.merge import merge_lines
from atelier.models import MODELS
from atelier.processes import run
from atelier.tracking.origin import git

PACKAGE = Path(__file__).parent
PARAMS = "params.yaml"
# file of a workspace → its template, by a name that neither DVC nor git takes for its own
FILES = {
    ".dockerignore": "dockerignore.j2",
    ".dvc/.gitignore": "dvc_gitignore.j2",
    ".dvc/config": "dvc_config.j2",
    ".dvc/plots/classes.json": "plots_classes.json.j2",
    ".dvc/plots/lines.json": "plots_lines.json.j2",
    ".dvc/plots/recognised.json": "plots_recognised.json.j2",
    ".dvcignore": "dvcignore.j2",
    ".github/workflows/atelier.yaml": "workflow.yaml.j2",
    ".gitignore": "gitignore.j2",
    "Dockerfile": "Dockerfile.j2",
    "README.md": "README.md.j2",
    "deploy/kustomization.yaml": "kustomization.yaml.j2",
    "dvc.yaml": "dvc.yaml.j2",
    PARAMS: "params.yaml.j2",
    "requirements.txt": "requirements.txt.j2",
}
# written as they are, and anew by `upgrade`: they are not the user's to change
AS_THEY_ARE = {".dvc/plots.html": "plots.html"}
BOTH_KINDS = ("cgan", "cvae")
RECORD = ".atelier.json"


class Written(Record):
    """What `init`, or the last `upgrade`, wrote into a workspace, from which values of the templates' places."""

    what: ClassVar = "the record of what 'atelier init' wrote"

    format: Literal[1] = 1
    values: dict[str, Any]
    files: dict[str, str]  # by their paths in the workspace


@dataclass(frozen=True)
class Change:
    """What this version changes in a file of a workspace.

    Attributes:
        name: of the file.
        before: what it holds; None if it is not there.
        after: what it is to hold, with what was changed there since; None if both changed the same lines, or it was
            removed.
    """

    name: str
    before: str | None
    after: str | None

    @property
    def diff(self) -> str:
        """As `diff -u` shows it; of what nobody reads, that it is another."""
        if self.name in AS_THEY_ARE:
            return f"{self.name}: that of this version\n"
        before, after = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        return "".join(difflib.unified_diff(before, after, self.name, self.name))


def init(folder: Path, dataset: str, model: str | None, is_git: bool) -> None:
    """Write a workspace; what is there already is never changed.

    Args:
        folder: the workspace, new or not.
        dataset: name of a published one, or a folder or archive of pictures.
        model: that is trained on it; a GAN and a VAE if None.
        is_git: whether to make the folder a git repository, unless it lies in one.

    Raises:
        InputError: if a file is there already, or data set or model cannot be; nothing is written then.
        AtelierError: if git cannot make a repository.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    values = _values(folder, dataset, [model] if model else BOTH_KINDS, is_git)
    texts = _texts(values)
    texts[RECORD] = to_json(Written(values=values, files=texts).model_dump())
    texts |= _as_they_are()
    if existing := next((name for name in texts if os.path.lexists(folder / name)), None):
        raise InputError(f"{folder / existing}: exists, and nothing is overwritten; give another folder, or move it")
    with tempfile.TemporaryDirectory() as name:
        trial = Path(name) / PARAMS
        trial.write_text(texts[PARAMS], encoding="utf-8")
        load_params(trial)
    written = list[Path]()
    with nullcontext(folder) if folder.exists() else atomic_directory(folder) as target:
        try:
            for name, text in texts.items():
                write_atomic(target / name, text)
                written.append(target / name)
            if is_git and git(target, "rev-parse", "--git-dir") is None:
                run(["git", "init", "--quiet", str(target)], what=f"{folder}: no git repository (--no-git: without)")
        except BaseException:
            for path in written:
                path.unlink()
            raise


def upgrade(folder: Path, *, really: bool) -> list[Change]:
    """Bring the files of a workspace to what this version would write; returns what changes in each.

    Args:
        folder: the workspace.
        really: else nothing is written.

    Raises:
        InputError: if `atelier init` did not make it.
        AtelierError: if its record is damaged, or git cannot merge.
    """
    written = Written.read(folder / RECORD, "atelier init")
    now = {"litter": LITTER, "distribution": DISTRIBUTION, "version": atelier.__version__}
    values = written.values | now
    texts = _texts(values)
    changes = list[Change]()
    for name, text in texts.items():
        path, base = folder / name, written.files.get(name)
        before = path.read_text("utf-8") if path.is_file() else None
        if text in (base, before):
            continue
        after = text if base is None and before is None else _merged(before, base or "", text)
        changes.append(Change(name, before, after))
    for name, text in _as_they_are().items():
        path = folder / name
        before = path.read_text("utf-8") if path.is_file() else None
        if text != before:
            changes.append(Change(name, before, text))
    if really:
        for change in changes:
            if change.after is not None:
                write_atomic(folder / change.name, change.after)
        # a file that could not be merged keeps its base, so that it is shown again
        left = {change.name: written.files.get(change.name, "") for change in changes if change.after is None}
        Written(values=values, files=texts | left).write(folder / RECORD)
    return changes


def _merged(ours: str | None, base: str, theirs: str) -> str | None:
    """What changed from `base` to `theirs`, in `ours`; None if that was changed there too, or removed."""
    if ours is None:
        return None
    merged, conflicts = merge_lines(ours.encode(), base.encode(), theirs.encode())
    return None if conflicts else merged.decode()


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template with its places filled.

    Raises:
        jinja2.UndefinedError: if one is left.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return str(environment.get_template(template).render(values))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of a workspace and what they hold."""
    base = PACKAGE / "deploy" / "base"
    manifests = {
        f"deploy/base/{path.relative_to(base).as_posix()}": path.read_text("utf-8") for path in files_below(base)
    }
    return {name: render(template, values) for name, template in FILES.items()} | manifests


def _as_they_are() -> dict[str, str]:
    return {name: (PACKAGE / "templates" / source).read_text("utf-8") for name, source in AS_THEY_ARE.items()}


def _values(folder: Path, dataset: str, models: Sequence[str], is_git: bool) -> dict[str, Any]:
    """What the templates are filled with."""
    for model in models:
        if model not in MODELS:
            raise InputError(f"--model {model}: unknown{nearest(model, MODELS)}")
    name, paths, sets, has_labels = _data(folder, dataset)
    distance = metric_name("fd", CLASSIFIER if has_labels else LITE0)
    return {
        "name": folder.resolve().name,
        "image": _name(folder.resolve().name).lower(),
        "dataset": name,
        "models": [{"name": model, "kimg": f"{MODELS[model].recipe.kimg:g}"} for model in models],
        "run": f"{name}-{models[0]}",
        "paths": paths,
        "sets": sets,
        "distance": distance,
        "at_most": f"{{{distance}: 10}}" if has_labels else "{}",
        "is_git": is_git,
        "has_code": False,
        "litter": LITTER,
        "distribution": DISTRIBUTION,
        "version": atelier.__version__,
    }


def _data(folder: Path, dataset: str) -> tuple[str, str, str, bool]:
    """Of a data set: its name, `ingest.paths` and `prepare.sets` in YAML, and whether it has labels."""
    if dataset in DATASETS:
        return dataset, "{}", "{}", bool(DATASETS[dataset].class_names)
    source, workspace = Path(dataset).resolve(), folder.resolve()
    if not source.exists():
        raise InputError(f"--dataset {dataset}: no such folder, and not published{nearest(dataset, DATASETS)}")
    if workspace.is_relative_to(source):
        raise InputError(f"--dataset {dataset}: the workspace would lie among the pictures; give a folder of their own")
    settings = look(source)
    name = _name(source.name.partition(".")[0])
    if name in DATASETS or not name[0].isalpha():  # to YAML a number is no name
        name = f"my-{name}"
    # so that the workspace can be moved
    path = source.relative_to(workspace) if source.is_relative_to(workspace) else source
    return name, _flow({name: str(path)}), f"{{{name}: {_flow(settings)}}}", "classes" in settings


def _name(text: str) -> str:
    """What params.yaml takes for a name, and in lower case a registry of images."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "pictures"


def _flow(section: Mapping[str, Any]) -> str:
    """A section in a line of YAML."""
    return f"{{{', '.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in section.items())}}}"

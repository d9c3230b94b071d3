"""The stage `plan`: for each stage and what it goes over, a digest of all that it depends on beside its data.

That is its code and the parameters that it reads, with their defaults; `plan.json` has them in full, too. DVC runs a
stage again when its digest has changed, and not for a change of code that it does not execute or of a parameter that it
does not read. DVC is given digests because it shows each value that a stage depends on as a column.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import atelier
from atelier.closure import ALL, Package, Row, Table
from atelier.config import Params, Run, Section
from atelier.config.catalogue import DatasetInfo
from atelier.files import digest_of, write_json
from atelier.models.recipe import Recipe
from atelier.own import AUGMENTATION, LOSS, METRIC, SOURCE, Part
from atelier.own_code import RESOLVED, is_own, module_of, names_of, package_of, table_of

PLAN = "plan.json"
DEPENDS_ON = "depends_on"  # key of the entries in full, beside the stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml`.

    Attributes:
        module: that it is the function of.
        over: what it is run for one by one.
        reads: what of the parameters; by name, below.
    """

    module: str
    over: Literal["datasets", "runs", "all"]
    reads: tuple[str, ...]


# Not here is what cannot change what is made: ingest.timeout_seconds, reference.inception and reference.dinov2 (whose
# files are verified), train.checkpoint_seconds, train.checkpoints_kept, train.resident_mb, train.cuda_graph,
# train.seeds_at_once.
STAGES = {
    "ingest": Stage(
        "atelier.data.ingest",
        "datasets",
        ("dataset.path", "dataset.origin", "ingest.limit_files", "ingest.limit_gigabytes"),
    ),
    "prepare": Stage(
        "atelier.data.prepare",
        "datasets",
        ("dataset.info", "prepare.contact_sheet_per_class", "prepare.limit_megapixels", "prepare.left_out_limit"),
    ),
    "reference": Stage(
        "atelier.evaluation.reference",
        "datasets",
        (
            *("dataset.extractors", "evaluate.samples", "evaluate.draws", "evaluate.manifold_samples"),
            "evaluate.metrics",
            *("evaluate.memorisation_samples", "evaluate.memorisation_features", "evaluate.repeat_samples"),
            *("evaluate.accuracy_kimg", "reference.classifier_kimg", "reference.seed"),
        ),
    ),
    "train": Stage(
        "atelier.training.train",
        "runs",
        (
            "run.dataset",
            "run.model",
            "run.recipe",
            "run.noise",
            "run.shape",
            "run.parent_sha256",
            "dataset.info.class_names",
            "train.tick_kimg",
            "train.pictures",
        ),
    ),
    "evaluate": Stage(
        "atelier.evaluation.evaluate",
        "runs",
        (
            *("run.dataset", "dataset.info.class_names", "dataset.extractors"),
            *("evaluate.samples", "evaluate.draws", "evaluate.seed", "evaluate.manifold_samples"),
            *("evaluate.memorisation_samples", "evaluate.memorisation_features", "evaluate.repeat_samples"),
            *("evaluate.path_samples", "evaluate.accuracy_kimg", "evaluate.metrics"),
            *("evaluate.likelihood_images", "evaluate.likelihood_samples"),
        ),
    ),
    "register": Stage(
        "atelier.registry.register",
        "runs",
        ("run.dataset", "run.model", "run.source", "dataset.info", "register.prefix", "register.name"),
    ),
    "compare": Stage("atelier.evaluation.compare", "all", ("runs", "compare.title")),
}
TABLES = (
    Table("atelier.models", "MODELS", RESOLVED),
    # but the side as published
    Table(
        "atelier.config.catalogue", "DATASETS", frozenset({f.name for f in dataclasses.fields(DatasetInfo)} - {"side"})
    ),
    Table("atelier.data.sources", "SOURCES"),
    Table("atelier.training.losses", "ADVERSARIAL_LOSSES"),
    Table("atelier.training.augmentation", "AUGMENTATIONS"),
    Table("atelier.models.likelihood", "LIKELIHOODS"),
)
# keys of a recipe that name rows
CHOICES = {"loss": "ADVERSARIAL_LOSSES", "augment": "AUGMENTATIONS", "likelihood": "LIKELIHOODS"}
# what these make of params.yaml is in the plan itself
READERS: list[type] = [Run, *Section.__subclasses__(), Recipe, *Recipe.__subclasses__()]
UNCOUNTED = frozenset(f"{reader.__module__}.{reader.__name__}" for reader in READERS)
METHODS = {"gan": "atelier.training.gan", "vae": "atelier.training.vae"}
VALIDATION = "atelier.training.validation"
# what tries losses and the like of the user's own, and metrics
TRIED, OWN_METRICS = "atelier.training.own", "atelier.evaluation.own"
USED_BY = {LOSS: ("train",), AUGMENTATION: ("train",), METRIC: ("reference", "evaluate"), SOURCE: ("ingest",)}


def plan(params: Params, root: Path) -> Path:
    """Write `plan.json`, and remove what was registered of runs that are no more.

    Raises:
        AtelierError: if a module is missing or no Python.
    """
    path, found = root / PLAN, entries(params)
    write_json(path, digests(found) | {DEPENDS_ON: found})
    for leftover in (root / "registry").glob("*.json"):
        if leftover.stem not in params.runs:  # or `compare` would depend on a run that is no more
            leftover.unlink()
    return path


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a stage goes over, a data set, a run or all of them.

    Attributes:
        known: the parameters of it, by name.
        rows: of the tables, that it uses.
        names: that it uses of modules beside the stage's own.
        parts: of the user's own, that it uses in some of its stages.
        without: modules that it does not use, although the stage imports them for others.
    """

    known: dict[str, Any]
    rows: frozenset[Row]
    names: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    without: tuple[str, ...] = ()


def entries(params: Params, package: Path = Path(atelier.__file__).parent) -> dict[str, Any]:
    """What the stages depend on: stage → data set or run → names of parameters and their values, and `code`, a digest.

    Args:
        params: of the project.
        package: the folder of the code.
    """
    code, sections = all_code(params, package), params.model_dump(by_alias=True)

    def entry(stage: Stage, one: str) -> dict[str, Any]:
        found = scope(stage, one, params)
        known = sections | found.known
        read = {name: functools.reduce(lambda value, key: value[key], name.split("."), known) for name in stage.reads}
        return {"code": code.digest(*uses(stage, found)), **read}

    over = {"datasets": params.datasets, "runs": params.runs}
    return {
        name: entry(stage, "") if stage.over == "all" else {one: entry(stage, one) for one in over[stage.over]}
        for name, stage in STAGES.items()
    }


def digests(found: dict[str, Any]) -> dict[str, Any]:
    """What DVC compares: stage → data set or run → the digest of its entry; of a stage over all, its digest."""

    def plain(value: Any) -> Any:
        """As a parameter may be written in two ways: 60 is 60.0, and keys have no order."""
        if isinstance(value, Mapping):
            return {key: plain(value[key]) for key in sorted(value)}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def digest(entry: Any) -> str:
        return digest_of(json.dumps(plain(entry)).encode())[:16]

    return {
        name: digest(found[name]) if stage.over == "all" else {one: digest(entry) for one, entry in found[name].items()}
        for name, stage in STAGES.items()
    }


def all_code(params: Params, package: Path) -> Package:
    """The package, and with it the models of the user's own that runs name."""
    own = [code for code in (params.run(name).code for name in params.runs) if is_own(code)]
    parts = [part for name in params.runs for part in params.run(name).parts]
    parts += [part for name in params.datasets for part in params.dataset_parts(name)]
    parts += params.metric_parts()
    others = {package_of(code) for code in own} | {part.package for part in parts}
    return Package(package, [*TABLES, *map(table_of, own)], UNCOUNTED, others)


def uses(stage: Stage, scope: Scope) -> tuple[dict[str, list[str]], frozenset[Row], tuple[str, ...]]:
    """What a stage uses of the code: the arguments of `Package.closure`."""
    name = stage.module.rpartition(".")[2]
    names = {stage.module: [name], **scope.names}
    for part in scope.parts:
        names |= part.used if name in USED_BY[part.kind] else {}
    return names, scope.rows, scope.without


def scope(stage: Stage, one: str, params: Params) -> Scope:
    """What a stage goes over when it is run for a data set, a run, or all ("")."""
    if stage.over == "all":
        return _of_all(params)
    return _of_dataset(one, params) if stage.over == "datasets" else _of_run(one, params)


def _of_dataset(name: str, params: Params) -> Scope:
    info, path = dataclasses.asdict(params.dataset(name)), params.ingest.paths.get(name)
    dataset = {
        "path": path,
        "origin": {key: info.pop(key) for key in ("arrays", "kaggle", "png_twins")},
        "info": info,
        "extractors": params.extractors(name),
    }
    scheme = path.partition("://")[0] if path else "kaggle"
    rows = frozenset({("DATASETS", name), ("SOURCES", scheme)})
    metrics = params.metric_parts()
    without = () if metrics else (OWN_METRICS,)
    return Scope({"dataset": dataset}, rows, parts=params.dataset_parts(name) + metrics, without=without)


def _of_run(name: str, params: Params) -> Scope:
    run = params.run(name)
    of_dataset = _of_dataset(run.dataset, params)
    recipe = run.recipe.model_dump()
    chosen = {(table, row) for key, table in CHOICES.items() for row in _listed(recipe.get(key, []))}
    without = [module for method, module in METHODS.items() if method != run.entry.method]
    without += [VALIDATION] if run.recipe.validation is None else []
    without += [] if run.parts else [TRIED]
    without += of_dataset.without
    known = {
        "dataset": run.dataset,
        "model": run.model,
        "source": run.entry.source,
        "recipe": recipe,
        "noise": run.recipe.noise,
        "shape": dataclasses.asdict(run.shape),
        "parent_sha256": run.parent_sha256,
    }
    return Scope(
        of_dataset.known | {"run": known},
        of_dataset.rows | {("MODELS", run.model)} | chosen,
        names=names_of(run.code) if is_own(run.code) else {module_of(run.code): [ALL]},
        parts=run.parts + params.metric_parts(),
        without=tuple(without),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _of_all(params: Params) -> Scope:
    runs = [params.run(name) for name in params.runs]
    known = {
        run.name: {"dataset": run.dataset, "title": run.info.title, "model": run.model, "source": run.entry.source}
        for run in runs
    }
    rows = {("MODELS", run.model) for run in runs} | {("DATASETS", run.dataset) for run in runs}
    return Scope({"runs": known}, frozenset(rows))

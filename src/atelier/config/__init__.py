"""`params.yaml` as typed, validated objects. Whatever is wrong is one line naming the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, model_validator

from atelier.config.catalogue import DATASETS, DatasetInfo, SetSettings, describe
from atelier.config.cluster import Cluster
from atelier.config.reading import apply_override, convert, nearest, read_yaml
from atelier.errors import InputError
from atelier.models import MODELS, ImageShape, Model, ModelCode
from atelier.models.own import find_model, own_names
from atelier.models.recipe import (
    AUGMENTATIONS,
    LOSSES,
    Checked,
    Count,
    CountOrNone,
    GanRecipe,
    NotNegative,
    Positive,
    Recipe,
    Seed,
    Share,
)
from atelier.own import AUGMENTATION, LOSS, METRIC, SOURCE, Part, find_part, part_names

# keys of a recipe without effect while that other key is off
TUNES = {
    "lr_hold": "lr_decay",
    "penalty_weight": "penalty",
    "penalty_every": "penalty",
    "ema_rampup": "ema_half_life_kimg",
}
OFF = ("none", 0)
SCHEMES = ("s3", "kaggle")  # of addresses in `ingest.paths`, beside those of the user's own sources
# keys of a recipe that name what may be the user's own, and what is built in
NAMED = {"loss": (LOSS, LOSSES), "augment": (AUGMENTATION, AUGMENTATIONS)}
CLASSIFIER, LITE0, INCEPTION, DINOV2 = EXTRACTORS = ("classifier", "lite0", "inception", "dinov2")
AUTO = "auto"  # the classifier where the data set has labels, lite0 where it has none


def _is_extractor(name: str) -> str:
    if name not in (AUTO, *EXTRACTORS):
        raise ValueError(f"cannot be {name!r}{nearest(name, (AUTO, *EXTRACTORS))}")
    return name


class Section(Checked):
    """One section of `params.yaml`: the parameters of the stage of the same name."""


class Ingest(Section):
    """Where the bytes of a data set may come from."""

    paths: dict[str, str] = {}  # data set → a folder or archive you have, s3://BUCKET/PREFIX, or kaggle://OWNER/NAME
    timeout_seconds: Positive = 20  # of each connection
    limit_files: Count = 500_000  # a source with more is refused
    limit_gigabytes: Positive = 50  # a source that unpacks to more is refused


class Prepare(Section):
    """How raw files become arrays."""

    contact_sheet_per_class: Annotated[int, Field(ge=1, le=100)] = 12  # pictures of each class on it
    limit_megapixels: Annotated[float, Field(gt=0, le=89)] = 25  # a larger picture is left out, unread
    left_out_limit: Share = 0.02  # of the pictures; more left out is an error
    sets: dict[str, SetSettings] = {}  # data sets of your own, and changes to published ones


class Reference(Section):
    """How the extractors that belong to a data set are made."""

    classifier_kimg: Positive = 240  # training of the classifier whose features distances are measured in
    inception: str = ""  # published weights: a file, a folder with it, s3://BUCKET/KEY; empty: torch's cache, fetched
    dinov2: str = ""  # the same of ViT-L/14
    seed: Seed = 0  # of that classifier, and of the draws of the floor


class Train(Section):
    """What training does beside the steps; the recipe of each run stands in `runs`."""

    tick_kimg: Positive = 4  # one journal line every so often
    pictures: Annotated[int, Field(ge=1, le=1000)] = 24  # pictures from fixed latents over a training
    checkpoint_seconds: Positive = 60  # from one checkpoint to the next
    checkpoints_kept: Count = 2  # the newest so many
    resident_mb: CountOrNone = 2048  # images up to this size lie on the training device, else on disk
    cuda_graph: bool = True  # on a GPU, launch a step as one CUDA graph where it can be captured
    seeds_at_once: Count = 1  # of a run with several, each with its share of the cores, or a GPU


class Evaluate(Section):
    """How a model is judged."""

    extractors: list[Annotated[str, AfterValidator(_is_extractor)]] = [AUTO]  # []: models are not judged
    samples: Annotated[int, Field(ge=100, lt=2**31)] = 10_000  # images drawn, to be held against as many real ones
    draws: Annotated[int, Field(ge=2, le=1000)] = 3  # independent samples, for a mean and a standard deviation
    seed: Seed = 0  # of the first draw
    manifold_samples: CountOrNone = 5000  # for precision, recall, density, coverage; 0: without
    memorisation_samples: CountOrNone = 500  # whose nearest training images are searched; 0: without
    memorisation_features: CountOrNone = 0  # the same in features instead of pixels; 0: without
    repeat_samples: CountOrNone = 0  # fakes that are held against each other, at most 10,000; 0: without
    path_samples: CountOrNone = 0  # places between latents, for the perceptual path length; 0: without
    accuracy_kimg: NotNegative = 20  # training of a classifier on fakes, to be tested on real images; 0: without
    likelihood_images: CountOrNone = 500  # test images that a VAE is judged by; 0: without
    likelihood_samples: Count = 50  # latents per image
    metrics: list[str] = []  # of your own, beside those that are built in


class Register(Section):
    """How versions are named in the MLflow registry."""

    # put before the name
    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$", description="letters, digits, '_', '.' and '-'")
    # of the registered model; runs that give the same name become versions of one
    name: str = Field(
        default="{run}",
        pattern=r"^([A-Za-z0-9_.-]|\{(run|dataset|model)\})+$",
        description="letters, digits, '_', '.', '-', {run}, {dataset} and {model}",
    )


class Promote(Section):
    """The gates of `atelier promote`, by metric of the report."""

    at_most: dict[str, float] = {}  # metric → the largest value that may be promoted
    at_least: dict[str, float] = {}  # metric → the smallest value that may be promoted
    better: list[str] = ["fd_classifier"]  # than the present champion
    error_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.025  # of `better`, where both are of several seeds


class Compare(Section):
    """The report over all runs."""

    title: str = "GAN and VAE, side by side"  # of the page


Event = Literal["end", "failure", "collapse"]


class Notify(Section):
    """Who is told how trainings, searches and `atelier repro` end, and of stages that fail."""

    webhook: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""  # environment variable with its address
    command: str = ""  # for the shell, with ATELIER_EVENT, ATELIER_WHAT and ATELIER_TEXT in its environment
    events: list[Event] = ["end", "failure", "collapse"]


Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]


class Range(Checked):
    """What a key may be: one of the values of a list, or a number between two bounds, which are included.

    Numbers are evenly likely by `linear`, by their logarithm in `log`, and whole in `integers`.
    """

    values: list[Any] | None = None  # one of these
    linear: Bounds | None = None  # between two bounds, evenly
    log: Bounds | None = None  # between two bounds, evenly in the logarithm
    integers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None  # whole numbers between two bounds

    @model_validator(mode="before")
    @classmethod
    def _list_of_values(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [(name, value) for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError("give a list of values, or one of linear, log and integers")
        name, value = given[0]
        if not value or (name != "values" and value[0] >= value[1]) or (name == "log" and value[0] <= 0):
            raise ValueError(f"{name}: cannot be {value!r}; the lower bound comes first")
        return self

    @property
    def ends(self) -> list[Any]:
        """Values that all others lie between, or all of them."""
        return next(value for _, value in self if value is not None)


class Search(Checked):
    """Trials of a run's settings, compared by the validation images: `atelier search`."""

    run: str  # whose entry is varied
    keys: Annotated[dict[str, Range], Field(min_length=1)]  # of its recipe → what each may be
    trials: Count = 24  # how many settings are tried
    kimg: Positive | None = None  # of each trial; the run's if left out
    parallel: Count = 2  # trials at a time; proposals depend on it
    seed: Seed = 0  # of what is proposed


class RunEntry(Checked):
    """An entry of `runs`: a data set and a model; whatever else it sets is checked against that model's recipe."""

    model_config = ConfigDict(extra="ignore")

    dataset: str
    model: str
    init: str = ""  # models:/NAME/VERSION, models:/NAME@ALIAS or a model's folder, whose weights it starts from


@dataclass(frozen=True)
class Run:
    """A resolved run: the recipe holds every value, set or default."""

    name: str
    dataset: str
    info: DatasetInfo
    code: ModelCode
    recipe: Recipe
    init: str = ""
    parts: tuple[Part, ...] = ()  # of the user's own, that its recipe names
    parent_sha256: str | None = None  # of the weights that `init` names, once they were looked up
    parent_folder: Path | None = None

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.code.name

    @property
    def entry(self) -> Model:
        """Its model's row in the table of models, or entry of its own."""
        return self.code.entry

    @property
    def shape(self) -> ImageShape:
        """The images it learns; without classes where its model uses none."""
        classes = self.entry.classes(self.recipe, len(self.info.class_names))
        return ImageShape(self.info.side, self.info.side, self.info.channels, classes)


class Params(Section):
    """All of `params.yaml`."""

    datasets: Annotated[list[str], Field(min_length=1)]
    runs: dict[str, dict[str, Any]]
    ingest: Ingest = Ingest()
    prepare: Prepare = Prepare()
    reference: Reference = Reference()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(default=Register(), alias="register")
    promote: Promote = Promote()
    compare: Compare = Compare()
    search: dict[str, Search] = {}
    notify: Notify = Notify()
    cluster: Cluster = Cluster()

    _resolved: dict[str, Run] = PrivateAttr(default_factory=dict)
    _root: Path | None = PrivateAttr(default=None)

    def run(self, name: str) -> Run:
        """A run with every value of its recipe, set or default.

        Raises:
            InputError: if there is none of this name.
        """
        if name not in self._resolved:
            raise InputError(f"params.yaml: runs has no '{name}'{nearest(name, self.runs)}")
        return self._resolved[name]

    def search_of(self, name: str) -> Search:
        """A search.

        Raises:
            InputError: if there is none of this name.
        """
        if name not in self.search:
            raise InputError(f"params.yaml: search has no '{name}'{nearest(name, self.search)}")
        return self.search[name]

    def set_parent(self, name: str, sha256: str | None, folder: Path | None = None) -> None:
        """Have a run know the weights that its `init` names, and where they lie."""
        self._resolved[name] = dataclasses.replace(self.run(name), parent_sha256=sha256, parent_folder=folder)

    def dataset(self, name: str) -> DatasetInfo:
        """A data set that is published or in `prepare.sets`, whether or not `datasets` lists it.

        Raises:
            InputError: if it is neither.
        """
        return _describe(name, self.prepare.sets, "params.yaml: prepare.sets")

    def dataset_parts(self, name: str) -> tuple[Part, ...]:
        """What a data set needs of the user's own: the source that the address of its pictures names.

        Raises:
            InputError: if its file has a mistake.
        """
        scheme, separator, _ = self.ingest.paths.get(name, "").partition("://")
        part = find_part(SOURCE, scheme, self._root, SCHEMES) if separator else None
        return () if part is None else (part,)

    def metric_parts(self) -> tuple[Part, ...]:
        """The metrics of the user's own.

        Raises:
            InputError: if there is none of a name, or its file has a mistake.
        """
        found = {name: find_part(METRIC, name, self._root, ()) for name in self.evaluate.metrics}
        if missing := [name for name, part in found.items() if part is None]:
            known = nearest(missing[0], part_names(METRIC, self._root))
            raise InputError(f"params.yaml: evaluate.metrics: no {METRIC.folder}/{missing[0]}.py{known}")
        return tuple(part for part in found.values() if part is not None)

    def automatic_extractor(self, dataset: str) -> str:
        """What `auto` in `evaluate.extractors` is for a data set."""
        return CLASSIFIER if self.dataset(dataset).class_names else LITE0

    def extractors(self, dataset: str) -> list[str]:
        """The extractors that models of a data set are judged by, each once; empty if they are not judged."""
        chosen = [self.automatic_extractor(dataset) if x == AUTO else x for x in self.evaluate.extractors]
        return list(dict.fromkeys(chosen))

    def require_extractors(self) -> None:
        """Refuse to judge by nothing: an `InputError` if `evaluate.extractors` is empty."""
        if not self.evaluate.extractors:
            raise InputError("params.yaml: evaluate.extractors: empty, there is nothing to judge by; name one")


def load_params(file: Path, overrides: Iterable[str] = (), root: Path | None = None) -> Params:
    """Read and validate a parameter file, after applying `section.key=value` overrides.

    Args:
        file: to read.
        overrides: of what stands there.
        root: the workspace, whose own models runs may name; the file's folder if None.

    Raises:
        InputError: naming the file, the key and what to do.
    """
    raw = read_yaml(file)
    for override in overrides:
        apply_override(raw, override)
    params = convert(raw, Params, file.name)
    sets = params.prepare.sets
    for name in sets:
        if not _is_name(name):
            raise InputError(f"{file.name}: prepare.sets: {name!r} may hold letters, digits, '-' and '_' only")
        _describe(name, sets, f"{file.name}: prepare.sets", file.name)
    for index, dataset in enumerate(params.datasets):
        where = f"{file.name}: datasets[{index}]"
        info = _describe(dataset, sets, where, file.name)
        if dataset in params.datasets[:index]:
            raise InputError(f"{where}: '{dataset}' is listed twice; remove one")
        if dataset not in DATASETS and dataset not in params.ingest.paths:
            raise InputError(f"{file.name}: ingest.paths.{dataset}: missing; add the folder or archive of its pictures")
        if CLASSIFIER in params.evaluate.extractors and not info.class_names:
            raise InputError(
                f"{file.name}: evaluate.extractors: '{CLASSIFIER}' needs labels and '{dataset}' has none; "
                f"choose '{AUTO}' or '{LITE0}', or [] to train without judging"
            )
    for dataset in params.ingest.paths:
        _describe(dataset, sets, f"{file.name}: ingest.paths.{dataset}", file.name)
    params._root = root or file.parent
    for name, entry in params.runs.items():
        run = _resolve(name, entry, sets, root or file.parent, file.name)
        if run.dataset not in params.datasets:
            raise InputError(f"{file.name}: runs.{name}.dataset: '{run.dataset}' is not in datasets; add it there")
        params._resolved[name] = run
    params.metric_parts()
    for name, search in params.search.items():
        _check_search(name, search, params, root or file.parent, file.name)
    return params


def _check_search(name: str, search: Search, params: Params, root: Path, file: str) -> None:
    """Refuse what a trial would be refused for."""
    where = f"{file}: search.{name}"
    if not _is_name(name):
        raise InputError(f"{where}: a search's name may hold letters, digits, '-' and '_' only")
    if search.run not in params.runs:
        raise InputError(f"{where}.run: runs has no '{search.run}'{nearest(search.run, params.runs)}")
    recipe = type(params.run(search.run).recipe)
    for key, values in search.keys.items():
        if key not in recipe.model_fields:
            raise InputError(f"{where}.keys: unknown key '{key}'{nearest(key, recipe.model_fields)}")
        if key in ("kimg", "seed", "seeds", "validation"):
            raise InputError(f"{where}.keys.{key}: is the same for all trials; leave it out")
        for value in values.ends:
            entry = params.runs[search.run] | {key: value}
            _resolve(search.run, entry, params.prepare.sets, root, f"{where}.keys.{key}: {value!r}: {file}")


def _is_name(name: str) -> bool:
    """Names become names of folders."""
    return name != "" and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)


def _describe(name: str, sets: Mapping[str, SetSettings], where: str, file: str = "params.yaml") -> DatasetInfo:
    info = describe(name, sets.get(name), f"{file}: prepare.sets.{name}")
    if info is None:
        raise InputError(f"{where}: unknown data set '{name}'{nearest(name, [*DATASETS, *sets])}")
    return info


def _resolve(
    name: str, entry: Mapping[str, Any], sets: Mapping[str, SetSettings], root: Path, file: str = "params.yaml"
) -> Run:
    where = f"{file}: runs.{name}"
    if not _is_name(name):
        raise InputError(f"{where}: a run's name may hold letters, digits, '-' and '_' only")
    chosen = convert(entry, RunEntry, file, "runs", name)
    info = _describe(chosen.dataset, sets, f"{where}.dataset", file)
    code = find_model(chosen.model, root)
    if code is None:
        known = [*MODELS, *own_names(root)]
        raise InputError(f"{where}.model: unknown model '{chosen.model}'{nearest(chosen.model, known)}")
    model = code.entry
    changes = {key: value for key, value in entry.items() if key not in RunEntry.model_fields}
    recipe = convert(model.recipe.model_dump() | changes, type(model.recipe), file, "runs", name)
    run = Run(name, chosen.dataset, info, code, recipe, chosen.init, _own_parts(recipe, root, where))
    for key, switch in TUNES.items():
        if key in changes and (off := getattr(recipe, switch, None)) in OFF:
            raise InputError(
                f"{where}.{key}: has no effect while {switch} is {off or 0}; set that too, or leave it out"
            )
    if info.side % model.side_multiple:
        raise InputError(
            f"{where}: model '{chosen.model}' needs an image side that is a multiple of {model.side_multiple}; "
            f"'{chosen.dataset}' has {info.side}; choose another model or data set"
        )
    if model.labels == "required" and not info.class_names:
        raise InputError(
            f"{where}: model '{chosen.model}' needs labels and '{chosen.dataset}' has none; choose another model"
        )
    if isinstance(recipe, GanRecipe) and recipe.pack > 1 and run.shape.classes:
        raise InputError(f"{where}.pack: images of different labels are not judged together; add labels: false")
    if entry.get("labels") is True and not run.shape.classes:
        what = f"model '{chosen.model}'" if model.labels == "unused" else f"data set '{chosen.dataset}'"
        raise InputError(f"{where}.labels: {what} has no labels; leave it out")
    return run


def _own_parts(recipe: Recipe, root: Path, where: str) -> tuple[Part, ...]:
    """What a recipe names of the user's own; what it names of nobody's is an `InputError`."""
    found = list[Part]()
    for key, (kind, built_in) in NAMED.items():
        value = getattr(recipe, key, [])
        for name in value if isinstance(value, list) else [value]:
            if part := find_part(kind, name, root, built_in):
                found.append(part)
            elif name not in built_in:
                known = [*built_in, *part_names(kind, root)]
                raise InputError(f"{where}.{key}: cannot be '{name}'{nearest(name, known)}")
    return tuple(dict.fromkeys(found))

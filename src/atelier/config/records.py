"""The JSON files that stages leave for each other: typed, with units in names and a format number.

Each is written and read here alone. What a file holds is checked when it is read, so that a damaged one, or one of
another format, is one line, and nothing behind it meets a value that it does not expect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from atelier.config.reading import sentence
from atelier.errors import AtelierError, InputError
from atelier.files import digest_of, read_limited, write_json
from atelier.models import MODELS, DataRange, ImageShape
from atelier.models.recipe import Checked, Count, CountOrNone, GanRecipe, NotNegative, Recipe, Seed, VaeRecipe

LIMIT_BYTES = 64 << 20  # no honest record is larger
COPY = 0.1  # of the distance of test images to their nearest training images: what is nearer is called a copy
FLOOR = "floor_"  # before a metric's name: what real training images get in place of fakes
TRAININGS = "trainings"  # in a model of several seeds, a folder each; the model itself is one of them
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", description="letters, digits, '-' and '_'")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="a sha256")]
Distribution = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the name of a distribution")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+!-]+$", description="a version")]
Channels = Annotated[int, Field(ge=1, le=4)]
Pixels = Annotated[int, Field(ge=1, le=4096)]


class _KeyTwice(Exception):
    """An object whose reader would have to choose."""


def _keys_once(pairs: list[tuple[str, Any]]) -> None:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise _KeyTwice(repr(key)[:100])
        seen.add(key)


class Record(Checked):
    """A file of one JSON object."""

    what: ClassVar[str]  # it is, for messages

    @classmethod
    def read(cls, path: Path, made_by: str) -> Self:
        """Read and check a file.

        Args:
            path: of the file.
            made_by: the command that writes it, for messages.

        Raises:
            InputError: if it is not there.
            AtelierError: if it cannot be read, is damaged, or of another format.
        """
        if not path.is_file():
            raise InputError(f"{path}: missing; run '{made_by}' first")
        try:
            content = read_limited(path, LIMIT_BYTES)
        except OSError as error:
            raise AtelierError(
                f"{path}: cannot be read ({error.strerror}); mend that, or run '{made_by}' again"
            ) from None
        return cls.parse(content, str(path), f"run '{made_by}' again")

    @classmethod
    def parse(cls, content: bytes | str, origin: str, remedy: str) -> Self:
        """Check a record's JSON, wherever it comes from.

        Raises:
            AtelierError: if it is not such a record.
        """
        if len(content) > LIMIT_BYTES:
            raise AtelierError(f"{origin}: not {cls.what}: larger than {LIMIT_BYTES >> 20} MB; {remedy}")
        try:
            record = cls.model_validate_json(content)
            json.loads(content, object_pairs_hook=_keys_once)
            return record
        except _KeyTwice as error:
            raise AtelierError(f"{origin}: damaged, it has the key {error} twice, {remedy}") from None
        except ValidationError as error:
            problems = error.errors(include_url=False)
            if any(problem["loc"] == ("format",) for problem in problems):
                wrong = "its format is another than this atelier's; install the one that wrote it"
            elif problems[0]["type"] == "json_invalid":
                wrong = "damaged, it is no JSON"
            else:
                wrong = f"not {cls.what}: {sentence(error, cls)}"
            raise AtelierError(f"{origin}: {wrong}, or {remedy}") from None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))


class Shard(Checked):
    """One of several files of images."""

    images: Count
    sha256: Sha256


class SplitCard(Checked):
    """One split of a prepared data set; mean and standard deviation are of grey values 0 to 255, per channel."""

    images: Annotated[int, Field(ge=0, lt=2**40)]
    by_class: list[CountOrNone] | None = None  # images of each class; None without labels
    mean: list[float]
    deviation: list[float]
    images_sha256: Sha256  # of their file; of several, of the digests of these
    labels_sha256: Sha256 | None
    shards: list[Shard] = Field(default=[], exclude_if=lambda value: not value)  # if they are in several files

    @model_validator(mode="after")
    def _has_its_shards(self) -> Self:
        if self.shards and sum(shard.images for shard in self.shards) != self.images:
            raise ValueError("its shards hold another number of images")
        if self.shards and images_sha256([shard.sha256 for shard in self.shards]) != self.images_sha256:
            raise ValueError("its shards have other digests")
        return self

    def image_files(self, split: str) -> dict[str, Sha256]:
        """The name of each file of images and its digest, in the order of the images."""
        digests = [shard.sha256 for shard in self.shards] or [self.images_sha256]
        return {images_file(split, number): sha256 for number, sha256 in enumerate(digests)}


def images_file(split: str, number: int) -> str:
    """The name of the file with images of a split, counted from 0."""
    return f"{split}-images-{number:04d}.npy" if number else f"{split}-images.npy"


def images_sha256(digests: Sequence[str]) -> str:
    """What the images of a split are known by: the digest of their file; of several, that of their digests."""
    return digests[0] if len(digests) == 1 else digest_of("".join(f"{sha256}\n" for sha256 in digests).encode())


@dataclass(frozen=True)
class LeftOut:
    """A file that is not taken, why, and whether a picture is lost by it."""

    file: str
    reason: str
    is_picture: bool = True


class DataCard(Record):
    """`card.json` of a prepared data set: what it is, where it comes from, and the digests of its files."""

    what: ClassVar = "the card of a data set"

    format: Literal[1] = 1
    dataset: str
    title: str
    source: str
    licence: str
    height: Pixels
    width: Pixels
    channels: Channels
    class_names: list[str]
    raw_sha256: dict[str, Sha256]  # file → digest
    splits: dict[Literal["train", "test"], SplitCard]
    contact_sheet_sha256: Sha256
    left_out: list[LeftOut]
    unused: CountOrNone  # pictures that are good, but beyond the split

    @field_validator("splits")
    @classmethod
    def _has_both(cls, splits: dict[str, SplitCard]) -> dict[str, SplitCard]:
        if splits.keys() != {"train", "test"}:
            raise ValueError("must be train and test")
        return splits


class Snapshot(Checked):
    """Which weights of a training are its result, where it was measured by a validation split."""

    kimg: NotNegative  # seen when these were its weights
    trained_kimg: NotNegative  # seen when it ended
    validation_distance: float  # of what is published
    stopped: str = ""  # why it ended before its time


class ModelConfig(Record):
    """`config.json` of a trained model: all that is needed to rebuild its sampler, and what it came from."""

    what: ClassVar = "the config of a model"

    format: Literal[1] = 1
    run: Name
    dataset: Name
    code_sha256: Sha256 | None = None  # of the code that builds its networks, if the model is the user's own
    # of the losses and the like of the user's own that it was trained with
    recipe_sha256: Sha256 | None = Field(default=None, exclude_if=lambda value: value is None)
    model: Name
    recipe: SerializeAsAny[Recipe]
    noise: Count  # standard normal numbers per image
    data_range: DataRange
    height: Pixels
    width: Pixels
    channels: Channels
    class_names: list[str]  # none: unconditional
    train_images_sha256: Sha256
    train_labels_sha256: Sha256 | None
    parent_sha256: Sha256 | None = None  # of the weights that training started from
    versions: dict[Distribution, Version]
    device: str
    world_size: Count
    former_world_sizes: list[Count] = []  # of the ranks that trained it before those, if it was gone on with by others
    precision: Literal["fp32", "bf16"]
    threads: Count | None = None
    weights_sha256: dict[str, Sha256] = {}  # network → digest of its file
    snapshot: Snapshot | None = None

    @field_validator("model")
    @classmethod
    def _is_known(cls, model: str, info: ValidationInfo) -> str:
        is_own = info.data.get("code_sha256") is not None
        if (model in MODELS) == is_own:
            raise ValueError(f"this atelier has {'its own' if is_own else 'no'} '{model}'")
        return model

    @field_validator("recipe", mode="before")
    @classmethod
    def _is_of_the_model(cls, recipe: Any, info: ValidationInfo) -> Any:
        if isinstance(recipe, Recipe):
            return recipe
        if "model" not in info.data:
            raise ValueError("is of no model")
        if isinstance(recipe, dict):
            recipe = {"ema_rampup": 0.0} | recipe  # there was none when older models were trained
        entry = MODELS.get(info.data["model"])
        is_vae = isinstance(entry.recipe, VaeRecipe) if entry else isinstance(recipe, dict) and "lr" in recipe
        return (VaeRecipe if is_vae else GanRecipe).model_validate(recipe)

    @property
    def shape(self) -> ImageShape:
        """The images it draws, and its number of classes."""
        return ImageShape(self.height, self.width, self.channels, len(self.class_names))

    @property
    def sampler_sha256(self) -> str:
        """The digest of the weights that images are drawn with; empty before they are written."""
        return self.weights_sha256.get("sampler", "")


class Estimate(Checked):
    """A metric over independent draws of one training, or over several trainings: a mean and a standard deviation."""

    mean: float  # of the draws; of several trainings, of their means
    deviation: NotNegative  # of the draws; of several trainings, between their means
    draws: Annotated[list[float], Field(min_length=1)]  # the values, those of each training together
    # of several trainings: the mean of each, and the standard deviation of the draws within them
    trainings: list[float] = Field(default=[], exclude_if=lambda value: not value)
    draws_deviation: NotNegative | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def independent(self) -> list[float]:
        """The values that `deviation` is the deviation of."""
        return self.trainings or self.draws


class Conditions(Checked):
    """What a report was measured against and with; None where a report of an older atelier does not say."""

    fakes: Count  # images per draw
    classes: Literal["as real"] | None = None  # in what proportions a conditional model is asked for them
    draws: Count
    seed: Seed  # of the first draw
    real: Count  # images
    real_split: Literal["train", "test"]
    real_images_sha256: Sha256  # of the prepared array
    floor_images: Count | None = None  # training images per draw of the floor
    extractors: Annotated[dict[Name, Sha256], Field(min_length=1)]  # and the digest of its weights
    dimensions: dict[Name, Count] = {}  # of the features of each extractor
    # parameters of `evaluate` that single metrics depend on
    manifold_samples: CountOrNone | None = None
    accuracy_kimg: NotNegative | None = None
    memorisation_samples: CountOrNone | None = None
    memorisation_features: CountOrNone | None = None
    repeat_samples: CountOrNone | None = None
    path_samples: CountOrNone | None = None
    likelihood_images: CountOrNone | None = None
    likelihood_samples: Count | None = None


class OwnMetric(Checked):
    """What a report says of a metric of the user's own: who reads it need not have its code."""

    title: str
    best: Literal["low", "high"] | float  # values; or the value that real images have
    explanation: str
    in_features: bool
    parameters: list[str]  # of `evaluate` that it depends on
    group: str
    sha256: Sha256  # of its sources: values of others do not compare


class Report(Record):
    """`report.json`: every metric and its floor, and under which conditions they were measured.

    `metrics.json` beside it has the means alone, for tables of many runs.
    """

    what: ClassVar = "a report"
    file: ClassVar = "report.json"

    metrics: dict[str, Estimate]  # in the file each is a key beside those below
    format: Literal[1] = 1
    conditions: Conditions
    weights_sha256: Sha256  # of the sampler
    own: dict[Name, OwnMetric] = Field(default={}, exclude_if=lambda value: not value)  # by kind

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "metrics" in value:
            return value
        own = {key: value[key] for key in cls.model_fields if key in value}
        return own | {"metrics": {key: value[key] for key in value if key not in own}}

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {**values.pop("metrics"), **values}

    @field_validator("metrics")
    @classmethod
    def _have_plain_names(cls, metrics: dict[str, Estimate]) -> dict[str, Estimate]:
        for name in metrics:
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of a metric")
        return metrics

    @property
    def measured(self) -> dict[str, Estimate]:
        """The metrics of the model, without those of the floor."""
        return {name: value for name, value in self.metrics.items() if not name.startswith(FLOOR)}

    @property
    def extractor(self) -> str:
        """The first one, whose metrics lead."""
        return next(iter(self.conditions.extractors))

    def floor(self, metric: str) -> Estimate | None:
        """What real training images get, if that was measured."""
        return self.metrics.get(FLOOR + metric)


Place = tuple[float, float]  # on the map of a gallery, in standard deviations of the real images along the first axis


class Drawn(Checked):
    """A sample that a report shows: image `index` of the seed, of the class that it was asked for."""

    index: CountOrNone
    asked: CountOrNone | None
    recognised: CountOrNone | None  # by the classifier
    place: Place | None
    nearest: list[CountOrNone]  # training images, the nearest first
    distances: list[NotNegative]  # to them: root mean square over pixels in [0, 1]


class Shown(Checked):
    """A real test image that a report shows."""

    label: CountOrNone | None
    place: Place | None


class Gallery(Record):
    """`gallery.json` of a report: what is known of each image in the sheets beside it.

    Sheets are rows of `columns` images without gaps, in the order of `drawn` and of `real`; of the nearest training
    images in that of `drawn`, as many for each.
    """

    what: ClassVar = "the gallery of a report"
    folder: ClassVar = "gallery"  # of the report, that all of it lies in
    file: ClassVar = "gallery.json"
    sheets: ClassVar = {"drawn": "drawn.webp", "real": "real.webp", "nearest": "nearest.webp"}

    format: Literal[1] = 1
    columns: Count
    seed: Seed  # of the draw
    drawn: Annotated[list[Drawn], Field(min_length=1)]
    real: Annotated[list[Shown], Field(min_length=1)]
    nearest_of_test: NotNegative | None  # median distance of a test image to its nearest training image
    explained: list[NotNegative]  # shares of the variance of the real images' features along the axes of the map

    @model_validator(mode="after")
    def _has_as_many_neighbours(self) -> Self:
        if len({len(one.nearest) for one in self.drawn} | {len(one.distances) for one in self.drawn}) != 1:
            raise ValueError("its images have not the same number of neighbours")
        return self

    def is_copy(self, one: Drawn) -> bool:
        """Whether a sample is as near to a training image as hardly a test image is."""
        return bool(one.distances) and one.distances[0] < COPY * (self.nearest_of_test or 0)


class ExtractorRecord(Checked):
    """The real test images in one extractor."""

    sha256: Sha256  # of its weights
    dimensions: Count
    real: Annotated[int, Field(ge=2, lt=2**31)]  # images
    statistics_sha256: Sha256
    test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None  # of a classifier
    real_by_class: list[CountOrNone] = []
    real_split: Literal["test"] = "test"
    real_images_sha256: Sha256
    train_features_sha256: Sha256 | None = None  # of their file, where nearest training images are searched in them
    nearest_train: NotNegative | None = None  # median distance of a test image to its nearest training image in them


class ReferenceRecord(Record):
    """`reference.json` of a data set: by which extractors models are judged, and what a perfect one would get."""

    what: ClassVar = "a reference"

    format: Literal[1] = 1
    dataset: Name
    extractors: dict[Name, ExtractorRecord]
    floor: dict[str, Estimate]  # by metric, of real training images in place of fakes
    floor_images: Count  # of them per draw
    nearest_train: NotNegative | None  # median distance of a test image to its nearest training image


class Registration(Record):
    """`registry/RUN.json`: what was registered, the same on every machine."""

    what: ClassVar = "the record of a registration"

    format: Literal[1] = 1
    name: str  # of the registered model
    code_sha256: Sha256 | None = None  # as in the model's config
    weights_sha256: Sha256
    report_sha256: Sha256  # of the report's folder


class VersionRecord(Registration):
    """`version.json` of a `record_folder`: which version that is in this workspace's store."""

    what: ClassVar = "the record of a version"

    version: Count
    uri: str
    run_id: str  # of MLflow
    commit: str | None = None  # of git, when it was registered
    clean: bool | None = None  # whether nothing was changed since


def differences(then: Any, now: Any, key: str = "") -> Iterator[str]:
    """Each value that differs, as "key: then → now"."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in then | now:
            yield from differences(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif then != now:
        yield f"{key}: {then!r} → {now!r}"

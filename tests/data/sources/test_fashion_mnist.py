"""Fashion-MNIST whole and real, from whatever source this machine can reach."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from atelier.config import Params, load_params
from atelier.config.catalogue import DATASETS
from atelier.data.arrays import open_split
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import AtelierError
from atelier.files import digest, folder_digest

assert DATASETS["fashion-mnist"].arrays
FILES = DATASETS["fashion-mnist"].arrays.files
PROJECT = Path(__file__).parents[3]
OVERRIDES = ["datasets=[fashion-mnist]", "runs={run: {dataset: fashion-mnist, model: cgan}}"]


def params_with(*overrides: str) -> Params:
    return load_params(PROJECT / "params.yaml", [*OVERRIDES, *overrides])


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fashion")
    ingest("fashion-mnist", params_with(), root, print)
    return root


@pytest.mark.processes
def test_the_published_bytes_become_arrays(fetched: Path) -> None:
    raw = fetched / "data/raw/fashion-mnist"
    assert {path.name: digest(path, "md5") for path in raw.iterdir()} == {
        f"{name}.idx": file.md5 for name, file in FILES.items()
    }
    prepare("fashion-mnist", params_with(), fetched)
    train = open_split(fetched, "fashion-mnist", "train")
    assert train.images.shape == (60_000, 28, 28, 1)
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [6000] * 10


@pytest.mark.processes
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_the_user_has_gives_the_same_bytes(fetched: Path, tmp_path: Path, form: str) -> None:
    own = tmp_path / "own" / "inner"
    own.mkdir(parents=True)
    for name, file in FILES.items():
        shutil.copy(fetched / f"data/raw/fashion-mnist/{name}.idx", own / file.official_name)
    source = own if form == "folder" else shutil.make_archive(str(tmp_path / "own"), form, tmp_path / "own")
    ingest("fashion-mnist", params_with(f"ingest.paths.fashion-mnist={source}"), tmp_path, print)
    target = tmp_path / "data/raw/fashion-mnist"
    assert folder_digest(target) == folder_digest(fetched / "data/raw/fashion-mnist")
    (own / "t10k-labels-idx1-ubyte").write_bytes(bytes(10_008))
    (target / "test-labels.idx").unlink()
    with pytest.raises(AtelierError, match=r"test-labels has md5 .* not the published file"):
        ingest("fashion-mnist", params_with(f"ingest.paths.fashion-mnist={own}"), tmp_path, print)
    assert len(list(target.iterdir())) == 3

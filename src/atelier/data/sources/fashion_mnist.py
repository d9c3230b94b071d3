"""Fashion-MNIST: the mirror torchvision uses, or Debian's package of it, unpacked without installing."""

from __future__ import annotations

from pathlib import Path

from atelier.data.sources import idx
from atelier.data.sources.download import unpack_debian_package

# Digests as torchvision 0.29.1 pins them for the .gz files; those of the content were computed from these.
FILES = {
    "train-images": idx.IdxFile(
        "train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 47_040_016
    ),
    "train-labels": idx.IdxFile(
        "train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe", 60_008
    ),
    "test-images": idx.IdxFile(
        "t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79", 7_840_016
    ),
    "test-labels": idx.IdxFile(
        "t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310", 10_008
    ),
}

MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
PACKAGE = "dataset-fashion-mnist"


def _read_package(folder: Path, timeout_seconds: float) -> dict[str, bytes]:
    """Read the package's .gz files; Debian packs them anew, so that only their content can be verified."""
    root = unpack_debian_package(PACKAGE, folder)
    return idx.read_folder(root / "usr/share/datasets/fashion-mnist", FILES)


FASHION_MNIST = idx.IdxSet("fashion-mnist", FILES, MIRRORS, f"Debian package {PACKAGE}", _read_package)

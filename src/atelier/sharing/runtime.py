"""ONNX Runtime Web, which draws in a browser: from the npm registry once, then from the user's cache.

Of its builds the one for WebAssembly alone is the smallest: 14 MB, 3.7 MB compressed. It is too large to be part of
Atelier, and no package of Python's has it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

from atelier.data.sources.download import fetch
from atelier.errors import AtelierError

NAME, VERSION = "onnxruntime-web", "1.30.0"
# as `npm view onnxruntime-web@1.30.0 dist.integrity` says it
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
BYTES = 33_106_585
REGISTRY = "https://registry.npmjs.org"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
TIMEOUT_SECONDS = 60.0


def runtime() -> dict[str, bytes]:
    """The contents of `SCRIPT` and `WASM`.

    Raises:
        AtelierError: if the archive is not in the cache and cannot be fetched, or is not the published one.
    """
    archive = cache() / f"{NAME}-{VERSION}.tgz"
    if not archive.is_file():
        _fetch(archive)
    _verify(archive)
    with tarfile.open(archive) as content:
        return {name: _member(content, name) for name in (SCRIPT, WASM)}


def cache() -> Path:
    """Where the archive is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "atelier"


def _fetch(archive: Path) -> None:
    # the variable is npm's own
    registry = os.environ.get("npm_config_registry", REGISTRY).rstrip("/")  # noqa: SIM112
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        fetched = Path(folder) / archive.name
        try:
            fetch(f"{registry}/{NAME}/-/{archive.name}", fetched, BYTES, TIMEOUT_SECONDS)
        except AtelierError as error:
            raise AtelierError(
                f"{NAME} {VERSION}: {error}; or put {archive.name}, which 'npm pack {NAME}@{VERSION}' makes, into "
                f"{archive.parent}"
            ) from None
        _verify(fetched)
        fetched.replace(archive)


def _verify(archive: Path) -> None:
    with archive.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != INTEGRITY:
        raise AtelierError(f"{archive}: not the published {NAME} {VERSION}, its sha512 is another; remove it")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/dist/{name}")
    assert file is not None
    return file.read()

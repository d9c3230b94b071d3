"""`atelier whence`: from a picture back to the registered version that drew it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import AtelierError, InputError
from atelier.mark import Mark, read_mark
from atelier.registry.lineage import uri_of, versions_of
from atelier.tracking import client, mlflow_errors, public_uri, require_store, tracking_uri


@dataclass(frozen=True)
class Whence:
    """What a picture says of itself, and the versions of the same weights in a registry."""

    mark: Mark
    versions: list[str]  # their URIs, the oldest first
    store: str  # where they are

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({"mark": self.mark.model_dump(), "versions": self.versions, "store": self.store})

    def lines(self) -> list[str]:
        """In words."""
        return [self.mark.sentence, *(self.versions or [f"no version of these weights in {self.store}"])]


def whence(path: Path, root: Path) -> Whence:
    """Read the mark of a picture or an archive of pictures, and look up which versions bear its weights.

    Raises:
        InputError: if there is no such file.
        AtelierError: if the file has no mark, or a damaged one, or MLflow does not answer.
    """
    mark = read_mark(path)
    if mark is None:
        raise AtelierError(f"{path}: says of no model that drew it")
    versions = [] if mark.weights_sha256 is None else _versions(mark.weights_sha256, root)
    return Whence(mark, versions, public_uri(tracking_uri(root)))


def _versions(weights_sha256: str, root: Path) -> list[str]:
    try:
        require_store(root)
    except InputError:  # none are in a store that is not there
        return []
    with mlflow_errors(root):
        return [uri_of(version) for version in versions_of(client(root), weights_sha256)]

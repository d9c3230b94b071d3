"""What `init` of a run names: the trained model, registered or in a folder, whose weights the training starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atelier.config import Params
from atelier.config.records import ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.registry.lineage import WEIGHTS_TAG, find_version
from atelier.registry.sample import folder_of
from atelier.tracking import client, mlflow_errors, require_store


def note_parents(params: Params, root: Path, say: Callable[[str], None]) -> None:
    """Have each run that starts from another model know the digest of its weights, on which its plan depends.

    A workspace whose store has no such version keeps what was trained from it; a folder in which nothing is trained yet
    has no digest.
    """
    for name in params.runs:
        if init := params.run(name).init:
            try:
                params.set_parent(name, _weights_sha256(init, root))
            except InputError as error:
                made = root / "models" / name / "config.json"
                kept = ModelConfig.read(made, f"atelier train {name}").parent_sha256 if made.is_file() else None
                say(f"runs.{name}.init: {error}" + ("; its model was trained from it elsewhere" if kept else ""))
                params.set_parent(name, kept)


def _weights_sha256(init: str, root: Path) -> str:
    if not init.startswith("models:/"):
        return ModelConfig.read(root / init / "config.json", "atelier train").sampler_sha256
    require_store(root)
    with mlflow_errors(root):
        version = find_version(client(root), init, root)
    sha256: str | None = version.tags.get(WEIGHTS_TAG)
    if sha256 is None:
        raise InputError(f"{init}: bears no digest of weights, it was not made by 'atelier register'")
    return sha256


@contextmanager
def parent_of(run_name: str, params: Params, root: Path) -> Iterator[None]:
    """Have a run, as long as this is entered, know the folder of the model that it starts from, if it does from one.

    Raises:
        InputError: if there is no such model.
        AtelierError: if its weights are not those of its config, or MLflow does not answer.
    """
    init = params.run(run_name).init
    if not init:
        yield
        return
    with folder_of(init, root) as (folder, _):
        config = ModelConfig.read(folder / "config.json", "atelier train")
        for name, sha256 in config.weights_sha256.items():
            if digest(folder / f"{name}.safetensors") != sha256:
                raise AtelierError(f"{init}: {name}.safetensors is altered; restore it, or name another model")
        params.set_parent(run_name, config.sampler_sha256, folder)
        yield

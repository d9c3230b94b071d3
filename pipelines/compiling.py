"""From `params.yaml` and the graph to the file that Kubeflow Pipelines runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import InputError
from atelier.files import write_atomic

if TYPE_CHECKING:
    from atelier.config import Params

IMAGE_BY_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")


def arguments(params: Params) -> dict[str, Any]:
    """The pipeline's parameters: the section of every stage with its defaults; a run is its entry and its name."""
    values: dict[str, Any] = params.model_dump(by_alias=True, exclude_none=True)
    del values["promote"]  # by people, from the registry
    values["runs"] = [{"name": name, **entry} for name, entry in values["runs"].items()]
    return values


@dataclass(frozen=True)
class Options:
    """What a compiled pipeline depends on beside the parameters; see `training.build`."""

    image: str
    gpus: int = 0
    nodes: int = 1
    deadline_hours: float = 72
    volume: bool = True


def compile_pipeline(params: Params, options: Options, target: Path) -> Path:
    """Write the pipeline with `params` as defaults of its parameters.

    Raises:
        InputError: if the image is not named by its digest: what a tag means changes, and Kubeflow's cache would take
            what an older image made for the result of a newer one.
    """
    if not IMAGE_BY_DIGEST.fullmatch(options.image):
        raise InputError(
            f"--image {options.image}: name it by its digest, REPOSITORY@sha256:…, as 'docker push' prints it"
        )
    if options.nodes > 1 and not (options.volume and options.gpus):
        raise InputError("--nodes: training on several nodes needs --gpus and --volume")
    from kfp import compiler

    from atelier.pipelines.training import build

    partial = target.with_name(f".{target.stem}.partial.yaml")
    try:
        compiler.Compiler().compile(build(**vars(options)), str(partial), pipeline_parameters=arguments(params))
        write_atomic(target, partial.read_bytes())
    finally:
        partial.unlink(missing_ok=True)
    return target

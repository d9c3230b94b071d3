"""The stages as Kubeflow components: a file each, of the stage's name, that runs the same command as `dvc repro`.

The inputs that are named as sections of `params.yaml` are those sections. A digest goes with every artifact:
Kubeflow's cache knows an artifact by its name alone, and must not take new data for old.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = "atelier"  # `atelier pipeline compile --image` puts a digest in its place


def component(function: Callable[..., Any]) -> Any:
    """A component that runs in the project's image, which has all it needs: pods install nothing."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)

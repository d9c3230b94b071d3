"""Atelier: a reproducible training pipeline for image generators."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from atelier.api import Model as Model
    from atelier.api import Workspace as Workspace
    from atelier.api import load as load


def __getattr__(name: str) -> Any:
    """What `api` has, imported when it is asked for: a command that only helps needs none of it."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.api"), name)

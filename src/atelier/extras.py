"""What only some uses need is installed with an extra of the distribution; the core runs without it."""

from importlib.util import find_spec

from atelier.errors import InputError

DISTRIBUTION = "atelier-images"
# extra → modules that it brings
EXTRAS = {
    "kubeflow": ("kfp", "kubernetes", "cronsim", "docker"),
    "kaggle": ("kagglehub",),
    "postgres": ("psycopg2",),
    "search": ("optuna",),
    "hub": ("huggingface_hub",),
    "c2pa": ("c2pa", "cryptography"),
}


def require_extra(extra: str) -> None:
    """Look whether all modules of an extra are there, without importing them.

    Raises:
        InputError: if one is not.
    """
    if any(find_spec(module) is None for module in EXTRAS[extra]):
        raise InputError(f"needs the extra '{extra}': pip install '{DISTRIBUTION}[{extra}]'")

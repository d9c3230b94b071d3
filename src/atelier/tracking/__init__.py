"""All that is MLflow's: which store, feeding a run, where a run came from, and looking after runs."""

from atelier.tracking.runs import ensure_run, experiment_id, run_params
from atelier.tracking.store import (
    check_uri,
    client,
    ensure_registered_model,
    equals,
    every,
    mlflow_errors,
    public,
    public_uri,
    require_store,
    tracking_uri,
    using,
)

__all__ = [
    "check_uri",
    "client",
    "ensure_registered_model",
    "ensure_run",
    "equals",
    "every",
    "experiment_id",
    "mlflow_errors",
    "public",
    "public_uri",
    "require_store",
    "run_params",
    "tracking_uri",
    "using",
]

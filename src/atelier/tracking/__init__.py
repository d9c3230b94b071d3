"""MLflow: which store, and which run."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError, InputError
from atelier.tracking.origin import data_input, origin_tags, process_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from atelier.config.records import ModelConfig

EXPERIMENT = "atelier"
MARK_TAG = "atelier.mark"  # by which a run is found whose id was not written down
LOCK_SECONDS = 60  # how long a process waits for others that write to the same SQLite file; Python's default is 5


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the workspace: nothing to start."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def require_store(root: Path) -> None:
    """What only reads or changes a registry makes none: the workspace's own store must be there.

    Raises:
        InputError: if it is not.
    """
    elsewhere = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not elsewhere and not (root / "mlflow.db").is_file():
        raise InputError(
            f"{root / 'mlflow.db'}: missing, nothing is registered here; run 'atelier register', or give --root or "
            "MLFLOW_TRACKING_URI"
        )


@contextlib.contextmanager
def mlflow_errors(root: Path) -> Iterator[None]:
    """Whatever MLflow, its database or its artifact store raise becomes one line that names the store."""
    try:
        yield
    except AtelierError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise AtelierError(f"MLflow at {public_uri(tracking_uri(root))}: {reason}") from error


def public_uri(uri: str) -> str:
    """A URI without the name and password that it may carry."""
    return re.sub(r"//[^/@]*@", "//", uri)


def client(root: Path) -> MlflowClient:
    """An MLflow client on the workspace's store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of its 7, the last wait is two minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # of its 120 seconds without a byte
    import logging

    import mlflow

    # else every table of a new store is announced, and each figure of the machine that could not be sent
    for chatty, level in (
        ("store", logging.WARNING),
        ("pyfunc", logging.WARNING),
        ("system_metrics", logging.CRITICAL),
    ):
        logging.getLogger(f"mlflow.{chatty}").setLevel(level)
    uri = tracking_uri(root)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _make_embedded_store(root.resolve() / "mlflow.db")
    uri, registry_uri = (_patient(each) for each in (uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri))
    with _environment_kept("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(registry_uri)
    return mlflow.MlflowClient()


def _patient(uri: str) -> str:
    """An SQLite file that others write to is waited for; other stores wait by themselves."""
    return f"{uri}?timeout={LOCK_SECONDS}" if uri.startswith("sqlite:") and "?" not in uri else uri


def ensure_registered_model(mlflow_client: MlflowClient, name: str, description: str | None = None) -> None:
    """Make a registered model unless there is one of that name."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def run_params(config: ModelConfig) -> dict[str, Any]:
    """What an MLflow run records of a model's config: every parameter of its training."""
    return {"dataset": config.dataset, "model": config.model} | config.recipe.model_dump()


@contextlib.contextmanager
def _environment_kept(*names: str) -> Iterator[None]:
    """MLflow writes what it is set to into the environment, where it would pass for the user's own choice."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def store(uri: str) -> Iterator[None]:
    """Work with another store than the workspace's for a while."""
    with _environment_kept("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_REGISTRY_URI"] = uri
        yield


def _make_embedded_store(path: Path) -> None:
    """Make the SQLite store aside and put it in place whole: MLflow cannot mend one whose making was cut short."""
    if path.exists():
        return
    from mlflow import MlflowClient

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{partial}").search_experiments()
    with contextlib.suppress(FileExistsError):  # another process was faster
        path.hardlink_to(partial)
    for left in path.parent.glob(f".{path.name}.*.partial*"):  # of killed makers; one still at it tries again
        left.unlink(missing_ok=True)


def ensure_run(root: Path, name: str, params: dict[str, Any], run_id: str | None, mark: str = "") -> str:
    """The MLflow run of a training, made if there is none.

    MLFLOW_RUN_ID in the environment is honoured, then `run_id`, then a run that bears the mark: it was made, but who
    made it did not live to write its id down. A `run_id` that this store does not know, since it is another store
    than before, gives a new run: the journal holds all that is needed to fill it.
    """
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    mlflow_client = client(root)
    from_environment = os.environ.get("MLFLOW_RUN_ID")
    run = None
    if wanted := from_environment or run_id:
        try:
            run = mlflow_client.get_run(wanted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        if run is not None and run.info.lifecycle_stage == "deleted":
            run = None
        if run is None and from_environment:
            raise InputError(f"MLFLOW_RUN_ID={wanted}: no such run in {public_uri(tracking_uri(root))}; unset it")
    if run is None and mark:
        experiment = experiment_id(mlflow_client, root)
        run = next(iter(mlflow_client.search_runs([experiment], f"tags.`{MARK_TAG}` = '{mark}'")), None)
    if run is None:
        experiment = experiment_id(mlflow_client, root)
        tags = origin_tags(mlflow_client, experiment) | process_tags() | ({MARK_TAG: mark} if mark else {})
        run = mlflow_client.create_run(experiment, run_name=name, tags=tags)
    else:
        mlflow_client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in process_tags().items()])
        if run.info.status != "RUNNING":
            mlflow_client.update_run(run.info.run_id, status="RUNNING")
    if not run.inputs.dataset_inputs and (data := data_input(params)) is not None:
        mlflow_client.log_inputs(run.info.run_id, [data])
    _log_new_params(mlflow_client, run.info.run_id, params, run.data.params)
    return str(run.info.run_id)


def experiment_id(mlflow_client: MlflowClient, root: Path) -> str:
    """The experiment that all runs are in, made if there is none."""
    experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # a server proxies artifacts; an embedded store keeps them beside its database
    database = tracking_uri(root).partition("sqlite:///")[2]
    location = (Path(database).resolve().parent / "mlartifacts").as_uri() if database else None
    try:
        return str(mlflow_client.create_experiment(EXPERIMENT, artifact_location=location))
    except Exception:  # another process made it in between
        experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _log_new_params(mlflow_client: MlflowClient, run_id: str, params: dict[str, Any], known: dict[str, str]) -> None:
    from mlflow.entities import Param

    new = [Param(key, str(value)) for key, value in params.items() if key not in known]
    if new:
        mlflow_client.log_batch(run_id, params=new)

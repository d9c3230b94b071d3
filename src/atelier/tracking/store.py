"""Which MLflow: a workspace's own store or a server, clients of it, and its errors in one line without passwords."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit

from atelier.errors import AtelierError, InputError
from atelier.extras import require_extra
from atelier.files import owner

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "atelier"
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # of an embedded store
LOCK_SECONDS = 60  # how long a process waits for others that write to the same SQLite file; Python's default is 5
# where an embedded store says in which folder artifacts lie
PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
POSTGRES = ("postgresql://", "postgresql+psycopg2://")
URI_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
USER_INFO = re.compile(r"(\w[\w+.-]*://)[^\s/?#'\"]*@")
SECRET_VALUE = re.compile(r"(?i)((?:password|passwd|pwd|secret|token|key)\w*=)[^&\s'\"]+")


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the workspace: nothing to start."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(owner(root) / DATABASE)


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file, whatever characters its path holds."""
    path = str(file.resolve())
    encoded = re.sub("[%?#]", lambda match: quote(match[0]), path)
    # of a URI that names no driver MLflow makes the folder, and takes its name without decoding it
    return f"sqlite:///{path}" if encoded == path else f"sqlite+pysqlite:///{encoded}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None of other stores."""
    scheme, _, rest = uri.partition(":///")
    name = unquote(rest.partition("?")[0]).removeprefix("file:")
    return Path(name).resolve() if re.fullmatch(r"sqlite(\+\w+)?", scheme) and name not in ("", ":memory:") else None


def artifacts_folder(file: Path) -> Path:
    """Where an embedded store keeps artifacts: beside its database."""
    return file.parent / ARTIFACTS


def require_store(root: Path) -> None:
    """What only reads or changes a registry makes none: the workspace's own store must be there.

    Raises:
        InputError: if it is not.
    """
    elsewhere = any(os.environ.get(name) for name in URI_VARIABLES)
    if not elsewhere and not (owner(root) / DATABASE).is_file():
        raise InputError(
            f"{owner(root) / DATABASE}: missing, nothing is registered here; run 'atelier register', or give --root "
            "or MLFLOW_TRACKING_URI"
        )


@contextlib.contextmanager
def mlflow_errors(root: Path) -> Iterator[None]:
    """Whatever MLflow, its database or its artifact store raise becomes one line that names the store."""
    try:
        yield
    except AtelierError:
        raise
    except Exception as error:
        raise AtelierError(f"MLflow at {public_uri(tracking_uri(root))}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an exception says, in a line that may be shown."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:3]) if lines[0].endswith(":") else lines[0]  # what it announces comes below
    return public(said)[:500]


def public_uri(uri: str) -> str:
    """A URI without the user, the password and the options that it may carry."""
    return public(uri.partition("?")[0])


def public(text: str) -> str:
    """Text without users and passwords: those of this environment's URIs in any spelling, and of any whole URI."""
    secrets = {os.environ[name] for name in SECRET_VARIABLES if os.environ.get(name)}
    for uri in (os.environ.get(name, "") for name in URI_VARIABLES):
        secrets |= _secrets(uri)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return SECRET_VALUE.sub(r"\1***", USER_INFO.sub(r"\1", text))


def _secrets(uri: str) -> set[str]:
    """The password of a URI as parsers may repeat it; one that is not encoded is cut by them at several places."""
    if sqlite_file(uri):
        return set()
    rest = uri.partition("://")[2]
    found = {rest[: at.start()].partition(":")[2] for at in re.finditer("@", rest)}
    found |= {value for key, value in parse_qsl(urlsplit(uri).query) if SECRET_VALUE.match(f"{key}={value}")}
    found |= {decoded(secret) for secret in found for decoded in (unquote, unquote_plus)}
    found |= {part for secret in found for part in re.split("[/?#@:]", secret) if len(part) > 2}
    return {form for secret in found for form in (secret, quote(secret, safe=""), quote_plus(secret)) if form}


def check_uri(uri: str, name: str) -> None:
    """Refuse an address that MLflow would read otherwise than it was meant, and repeat parts of a password.

    Raises:
        InputError: naming `name`, where it was given; or if the database's driver is not installed.
    """
    if uri.startswith(POSTGRES):
        require_extra("postgres")
    if not uri.startswith(("http://", "https://")):
        return
    try:
        parts = urlsplit(uri)
        sound = bool(parts.hostname) and parts.port != 0 and "@" not in f"{parts.path}{parts.query}{parts.fragment}"
    except ValueError:
        sound = False
    if not sound:
        raise InputError(
            f"{name}: no address of a server; write '/', '?', '#', '@' in a password as %2F, %3F, %23, %40, or give "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )


def client(root: Path) -> MlflowClient:
    """An MLflow client on the workspace's store.

    Raises:
        InputError: if the environment names none that can be.
        sqlite3.Error: if the embedded store cannot be opened; `mlflow_errors` makes a line of it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of its 7, the last wait is two minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # of its 120 seconds without a byte
    uri = tracking_uri(root)
    for name in URI_VARIABLES:
        check_uri(os.environ.get(name, ""), name)
    import mlflow

    # else every table of a new store is announced, errors are told twice, with tracebacks, and each figure of the
    # machine that could not be sent
    for chatty, level in (
        ("store", logging.CRITICAL),
        ("pyfunc", logging.WARNING),
        ("system_metrics", logging.CRITICAL),
    ):
        logging.getLogger(f"mlflow.{chatty}").setLevel(level)
    uri, registry_uri = (_opened(each) for each in (uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri))
    with _environment_kept(*URI_VARIABLES):
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(registry_uri)
    return mlflow.MlflowClient()


def _opened(uri: str) -> str:
    """The URI of an SQLite file as a client takes it, who waits for others that write; of other stores as it is."""
    file = sqlite_file(uri)
    if file is None or "?" in uri:
        return uri
    _open_embedded(file)
    return f"{uri}?timeout={LOCK_SECONDS}"


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
def using(uri: str) -> Iterator[None]:
    """Work with another store than the workspace's for a while."""
    with _environment_kept(*URI_VARIABLES):
        os.environ |= dict.fromkeys(URI_VARIABLES, uri)
        yield


def _open_embedded(file: Path) -> None:
    """Make an SQLite store, if it is none yet; one that was moved or copied keeps its artifacts where it now is."""
    with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as database:
        tables, here = _tables(database), artifacts_folder(file).as_uri()
        if not tables:
            _make_embedded(database, here)
            return
        if "experiments" not in tables or (former := _recorded_place(database)) in (None, here):
            return
        with _transaction(database):
            for table in PLACES.keys() & tables:
                database.execute(
                    f"update {table} set {PLACES[table]} = :here || substr({PLACES[table]}, length(:former) + 1) "
                    f"where {PLACES[table]} = :former or {PLACES[table]} like :inside escape '!'",
                    {"here": here, "former": former, "inside": re.sub("([!%_])", r"!\1", f"{former}/") + "%"},
                )


def _recorded_place(database: sqlite3.Connection) -> str | None:
    """Where the store keeps artifacts by its own words; None if a person chose another kind of place."""
    (found,) = database.execute(
        "select artifact_location from experiments where name in (?, 'Default') order by name = 'Default'",
        (EXPERIMENT,),
    ).fetchone() or ("",)
    place = re.fullmatch(rf"(file:///(?:.*/)?{ARTIFACTS})(/0)?", found)
    return place[1] if place else None


def _make_embedded(database: sqlite3.Connection, artifacts: str) -> None:
    """Fill a new file in one transaction: MLflow makes its tables one by one and cannot mend what was cut short.

    Its experiment 'Default', too, is to keep what others log in the folder of artifacts, and to move with it.
    """
    statements = _new_store()
    with _transaction(database):
        if not _tables(database):  # no other process was faster
            for statement in statements:
                database.execute(statement)
            database.execute("update experiments set artifact_location = ? || '/' || experiment_id", (artifacts,))


@functools.cache
def _new_store() -> list[str]:
    """The SQL that makes an empty store, from one that MLflow made."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="atelier-store-") as folder:
        file = Path(folder) / DATABASE
        MlflowClient(sqlite_uri(file)).search_experiments()
        with contextlib.closing(sqlite3.connect(file)) as made:
            _, *statements, _ = made.iterdump()  # it begins and commits by itself
    return statements


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; other processes wait."""
    database.execute("begin immediate")
    try:
        yield
    except BaseException:
        database.execute("rollback")
        raise
    database.execute("commit")


def equals(key: str, value: str) -> str:
    """A condition of MLflow's searches: that `key` has this value, whatever characters it holds.

    Raises:
        InputError: if it holds both kinds of quotes, which MLflow's grammar cannot say.
    """
    if "'" in value and '"' in value:
        raise InputError(f"{value}: MLflow finds no name with both ' and \"; choose another")
    quotation = '"' if "'" in value else "'"
    return f"{key} = {quotation}{value}{quotation}"


def every(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """All that one of MLflow's searches finds, page by page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def ensure_registered_model(mlflow_client: MlflowClient, name: str, description: str | None = None) -> None:
    """Make a registered model unless there is one of that name."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise

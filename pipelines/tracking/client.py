"""The MLflow client: which server, whether it answers, its messages in one line."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import mlflow
import mlflow.artifacts
import mlflow.models
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines import storage
from pipelines.errors import UserError, first_line, redact
from pipelines.runtime.environment import require_lasting, tell_once
from pipelines.tracking import environment, mlflow_internals, sqlite_file

UNKNOWN = "unknown"


LOCKED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")  # codes of 401 and 403


SQLITE = "sqlite:///"  # and the path of the file


MAX_PARAMS, MAX_METRICS = 100, 1000  # per request, a limit of the server


MAX_DIGEST = 36  # characters, likewise


CLIENT_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The recorder asks an absent server again itself; the client must not block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


GLOBAL_SERVER_LOCK = threading.RLock()


_ADDRESSES: dict[str, str] = {}
"""URI without its user's name and password -> as it was given; only requests see the latter."""


def tracking_uri(requested: str | None, store: str) -> str:
    """The server to use: the flag, else MLFLOW_TRACKING_URI, else SQLite inside the store.

    Nobody is asked, since a server may be away for a while. What is returned names no user and no
    password, so that it may be printed and stored; this process keeps them for its requests.

    Raises:
        UserError: MLflow can never speak to that, or no SQLite file can live in the store.
    """
    require_lasting("store", store)
    found = _tracking_uri(requested, store)
    environment.tell_ignored(found)
    return found


def _tracking_uri(requested: str | None, store: str) -> str:
    if uri := requested or os.environ.get("MLFLOW_TRACKING_URI"):
        return _one_line(uri)
    if not storage.is_local(store):
        raise UserError(
            f"store is '{store}', where no SQLite file can live; name the tracking server with "
            "--tracking-uri http://... or MLFLOW_TRACKING_URI"
        )
    folder = storage.local_path(storage.absolute(store))
    if "?" in str(folder) or unquote(str(folder)) != str(folder):
        raise UserError(
            f"store is '{store}'; in the path of its SQLite file MLflow takes '?' and '%' with two "
            "digits for marks of a URL: name another folder, or a tracking server with "
            "--tracking-uri http://... or MLFLOW_TRACKING_URI"
        )
    return f"{SQLITE}{folder / 'mlflow.db'}"


def _one_line(uri: str) -> str:
    """The URI, if MLflow or a plug-in of it speaks its protocol; plain files it takes no longer."""
    possible = (":" in uri and not uri.startswith("file:")) or uri == "databricks"
    if not possible or not mlflow_internals.knows_protocol(uri):
        raise UserError(
            f"tracking_uri is '{uri}', which is no tracking server; --tracking-uri, or else "
            "MLFLOW_TRACKING_URI, must be http://HOST:PORT, https://HOST, or a database such as "
            "sqlite:///FOLDER/mlflow.db; without both the store has its own"
        )
    shown = redact(uri)
    if shown != uri:
        _ADDRESSES[shown] = uri
    return shown


def client(uri: str) -> MlflowClient:
    """A client of a tracking server that is also the model registry.

    Raises:
        MlflowException: its database is away; while connecting, MLflow itself would let an error
            of the driver through.
        UserError: its SQLite file is none, or of another schema.
    """
    silence_logging()
    if uri.startswith(SQLITE):
        sqlite_file.ensure_database(Path(uri.removeprefix(SQLITE)))
    address = _ADDRESSES.get(uri, uri)
    try:
        return MlflowClient(tracking_uri=address, registry_uri=address)
    except MlflowException:
        raise
    except Exception as error:
        raise MlflowException(first_line(error)) from error


def describe_refusal(uri: str, error: Exception) -> UserError | None:
    """What a user has to give to a server that lets nobody in, or not with this login.

    None for any other error: the same request may succeed later.
    """
    if not isinstance(error, MlflowException) or error.error_code not in LOCKED:
        return None
    return UserError(
        f"tracking_uri is '{uri}', which does not let this job in ({first_line(error)[:200]}): set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to a "
        "login that may write there"
    )


def require_access(uri: str) -> None:
    """Ask a server one thing before hours of work; one that is away is told of, once.

    Raises:
        UserError: it does not let this job in.
    """
    if uri.startswith(SQLITE):
        return
    try:
        client(uri).search_experiments(max_results=1)
    except Exception as error:
        if refusal := describe_refusal(uri, error):
            raise refusal from None
        if not may_pass(error):
            raise
        tell_once(
            f"warning: MLflow does not answer yet ({describe_error(uri, error)}); the work begins, "
            "and what it finds is delivered later"
        )


def is_there(uri: str) -> bool:
    """Whether a SQLite file exists, which MLflow would make in order to look in it."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def require_there(uri: str) -> None:
    """Refuse a SQLite file that does not exist.

    Raises:
        FileNotFoundError: nothing was ever recorded there.
    """
    if not is_there(uri):
        raise FileNotFoundError(
            f"'{uri}' is a file that is not there: nothing was recorded in that store; give the "
            "--store or the --tracking-uri of the training"
        )


@cache
def silence_logging() -> None:
    """Only MLflow's errors are shown: schema migrations and hints are not the user's business."""
    for name in ("mlflow", "alembic", "git", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A database that fails is raised here too, and told once: not with a stack at every try.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


def describe_error(uri: str, error: Exception) -> str:
    """What went wrong with a server, as a recorder says it: databases add their statements."""
    return f"{uri}: {type(error).__name__}: {first_line(error)}"[:500]


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the server or its storage is away."""
    return isinstance(error, MlflowException) or storage.may_pass(error)


@contextmanager
def global_server(uri: str) -> Iterator[None]:
    """For what MLflow asks only its global server; afterwards that is what it was.

    Setting it also sets the environment, where a later `tracking_uri` would find it. One thread
    at a time.
    """
    setters = {
        "MLFLOW_TRACKING_URI": mlflow.set_tracking_uri,
        "MLFLOW_REGISTRY_URI": mlflow.set_registry_uri,
    }
    with GLOBAL_SERVER_LOCK:
        before = {name: os.environ.get(name) for name in setters}
        try:
            for select in setters.values():
                select(_ADDRESSES.get(uri, uri))
            yield
        finally:
            for name, select in setters.items():
                select(before[name])
                os.environ.pop(name, None)
                if before[name] is not None:
                    os.environ[name] = str(before[name])

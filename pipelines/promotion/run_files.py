"""Files of runs and of logged models: they are there, they are not, or nobody can tell.

What is not there is seen in a listing, never in a request that failed: a server or a store that
refuses or fails has said nothing about a model, so that is an error of its own.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipelines.errors import UserError, first_line
from pipelines.models import files
from pipelines.tracking.client import client
from pipelines.tracking.registry import REPORT, REPORTS, SUMMARY

MODELS = "models:/"
ABSENT = "RESOURCE_DOES_NOT_EXIST"

Value = TypeVar("Value")


def call_server(what: str, action: Callable[[], Value]) -> Value:
    """What a server, or the store behind it, answers.

    Raises:
        UserError: it refuses or fails.
    """
    try:
        return action()
    except UserError as error:
        raise read_problem(what, str(error)) from error
    except Exception as error:  # of MLflow, or of the client of whatever store it has
        reason = f"{type(error).__name__}: {first_line(error)}"[:300]
        raise read_problem(what, reason) from error


def read_problem(what: str, reason: str) -> UserError:
    """The error for evidence that nobody could look at."""
    return UserError(
        f"could not read {what}: {reason}; this says nothing about a model, and nothing was "
        "decided: give the command again once it can be read"
    )


def summary(uri: str, run_id: str) -> dict[str, Any] | None:
    """What a pretraining run measured; None when it has not got that far.

    Raises:
        UserError: it could not be read.
    """
    if SUMMARY not in _files(uri, run_id):
        return None
    found: dict[str, Any] = _json(uri, run_id, SUMMARY)
    return found


def reports(uri: str, run_id: str) -> list[dict[str, Any]]:
    """All evaluation reports that are attached to a run that has ended.

    Raises:
        UserError: they could not be read.
    """
    root = _files(uri, run_id)
    if not root:  # a training that has ended has left some
        raise read_problem(_of_run(uri, run_id), "no file is where the server looks for them")
    found = []
    for folder in _files(uri, run_id, REPORTS) if REPORTS in root else ():
        path = f"{folder}/{REPORT}"
        if path in _files(uri, run_id, folder):
            found.append(_json(uri, run_id, path))
    return found


def has_weights(uri: str, source: str) -> bool:
    """Whether a logged model, models:/<model id>, is there with weights of ours in it.

    Raises:
        UserError: the server does not say.
    """
    server, model_id = client(uri), source.removeprefix(MODELS)

    def found(path: str | None) -> bool:
        return any(
            found(each.path) if each.is_dir else each.path.endswith(files.WEIGHTS)
            for each in server.list_logged_model_artifacts(model_id, path)
        )

    def look() -> bool:
        try:
            server.get_logged_model(model_id)  # a deleted one is still listed
            return found(None)
        except Exception as error:
            if getattr(error, "error_code", None) == ABSENT:  # of MLflow
                return False
            raise

    return call_server(f"{source} from {uri}", look)


def _files(uri: str, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of the files and folders in a folder of a run."""
    listed = call_server(_of_run(uri, run_id), lambda: client(uri).list_artifacts(run_id, folder))
    return [str(each.path) for each in listed]


def _json(uri: str, run_id: str, path: str) -> Any:
    def read() -> Any:
        with tempfile.TemporaryDirectory() as temporary:
            local = client(uri).download_artifacts(run_id, path, temporary)
            return json.loads(Path(local).read_text())

    return call_server(f"{path} of run '{run_id}' from {uri}", read)


def _of_run(uri: str, run_id: str) -> str:
    return f"the files of run '{run_id}' from {uri}"

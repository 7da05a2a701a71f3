"""The model registry of MLflow: facts of runs, versions found by run, aliases and audit tags.

Beside tracking.py the only importer of mlflow. Stages of the old registry are not used. Nothing
here decides anything: promotion does, under a lease, since aliases have no compare-and-set.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError, first_line, redact
from pipelines.tracking.client import client, global_server
from pipelines.tracking.models import DESCRIPTION_TAG
from pipelines.tracking.runs import RunSpec, ensure_run

SUMMARY = "summary.json"
GIVEN_TAG = "settings_given"  # of a training run: JSON of the settings that make it again
REPORTS = "evaluation"
REPORT = "report.json"
MAX_RUNS = 1000
MAX_TAG = 5000  # characters of a tag's value
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter of an alias
THERE = "RESOURCE_ALREADY_EXISTS"
AWAY = "INTERNAL_ERROR"
BUSY = "TEMPORARILY_UNAVAILABLE"  # its database fails, or is locked
DESCRIPTION = (
    "Context encoders of one kind of input. The alias `champion` is the version that every gate of "
    "jobs/promote.py let pass, `previous` the one before it, `candidate` the one refused last."
)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a tracking server says of a training run."""

    run_id: str
    experiment_id: str
    status: str
    deleted: bool
    """Whether it is only kept for `mlflow runs restore`."""
    params: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version of a model."""

    name: str
    version: str
    run_id: str
    source: str
    tags: Mapping[str, str]


def _asking(uri: str, action: Callable[[Any], Value]) -> Value:
    """Ask the server; one that is away or refuses is the user's to fix.

    Raises:
        UserError: nobody answers there, its database fails, or the server refuses.
        MlflowException: what was asked for is not there, or is there already.
    """
    try:
        with global_server(uri):  # MLflow resolves `models:/<id>` there only
            return action(client(uri))
    except MlflowException as error:
        reason = first_line(error)[:300]
        if error.error_code in (*ABSENT, THERE):
            raise
        if error.error_code == BUSY:
            raise UserError(
                f"tracking_uri is '{uri}', whose database fails now ({reason}); nothing was "
                "changed by this request. Another program may be writing to it: try again when "
                "that is done"
            ) from None
        if error.error_code != AWAY:
            raise UserError(
                f"tracking_uri is '{uri}', which refuses ({error.error_code}: {reason}); nothing "
                "was changed by this request. It must be an MLflow server that lets this user in "
                "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"
            ) from None
    except OSError as error:
        reason = first_line(error)[:300]
    raise UserError(
        f"tracking_uri is '{uri}', which does not answer ({reason}); promotion needs the server, "
        "and nothing was changed"
    )


def run_facts(uri: str, run_id: str) -> RunFacts:
    """A run by its id.

    Raises:
        UserError: there is no such run.
    """
    found = find_facts(uri, run_id)
    if found is None:
        raise UserError(
            f"run is '{run_id}', which {uri} does not have; give the id of a pretraining run, as "
            "jobs/pretrain.py prints it"
        )
    return found


def find_facts(uri: str, run_id: str) -> RunFacts | None:
    """A run by its id; None where it never was, or was deleted for good (`mlflow gc`)."""
    try:
        return _facts(_asking(uri, lambda server: server.get_run(run_id)))
    except MlflowException:
        return None


def _facts(run: Any) -> RunFacts:
    return RunFacts(
        run_id=str(run.info.run_id),
        experiment_id=str(run.info.experiment_id),
        status=str(run.info.status),
        deleted=run.info.lifecycle_stage == LifecycleStage.DELETED,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
    )


@contextmanager
def open_run(spec: RunSpec, *, good: bool) -> Iterator[str]:
    """A run that ends with the block, as FAILED unless it is good and nothing raises."""
    run_id = ensure_run(spec)
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED" if good else "FAILED"
    finally:
        client(spec.uri).set_terminated(run_id, status)


def runs_tagged(uri: str, experiment_id: str, name: str, value: str) -> list[RunFacts]:
    """Finished runs of an experiment that carry a tag."""
    condition = f"tags.{name} = '{value}' and attributes.status = 'FINISHED'"
    runs = _asking(
        uri, lambda server: server.search_runs([experiment_id], condition, max_results=MAX_RUNS)
    )
    return [_facts(run) for run in runs]


def tag_run(uri: str, run_id: str, name: str, value: str) -> None:
    """Set a tag of a run."""
    _asking(uri, lambda server: server.set_tag(run_id, name, redact(value)[:MAX_TAG]))


def ensure_name(uri: str, name: str) -> None:
    """Create the registered model unless it is there."""
    try:
        _asking(uri, lambda server: server.create_registered_model(name, description=DESCRIPTION))
    except MlflowException as error:
        if error.error_code != THERE:
            raise UserError(f"name is '{name}', which {uri} refuses: {first_line(error)}") from None


def versions_of_run(uri: str, name: str, run_id: str) -> list[Version]:
    """Versions of a model that a run made, oldest first."""
    # Not by the name, since a quote in it would end the condition.
    found = _asking(uri, lambda server: server.search_model_versions(f"run_id = '{run_id}'"))
    versions = [_version(each) for each in found if each.name == name]
    return sorted(versions, key=lambda version: int(version.version))


def ensure_version(uri: str, name: str, run_id: str, source: str, tags: dict[str, str]) -> Version:
    """The version of a run's model, registered unless it already is."""
    for version in versions_of_run(uri, name, run_id):
        if version.source == source:
            return version
    model_id = source.removeprefix("models:/")

    def create(server: Any) -> Any:
        logged = server.get_logged_model(model_id)
        description = logged.tags.get(DESCRIPTION_TAG) or None
        return server.create_model_version(
            name, source, run_id, tags=tags, model_id=model_id, description=description
        )

    return _version(_asking(uri, create))


def by_alias(uri: str, name: str, alias: str) -> Version | None:
    """The version an alias points to."""
    return _version_or_none(uri, lambda server: server.get_model_version_by_alias(name, alias))


def by_number(uri: str, name: str, version: str) -> Version | None:
    """A version by its number."""
    return _version_or_none(uri, lambda server: server.get_model_version(name, version))


def _version_or_none(uri: str, action: Callable[[Any], Any]) -> Version | None:
    """None where there is none; a server that refuses to answer has not said that."""
    try:
        return _version(_asking(uri, action))
    except MlflowException:
        return None


def set_alias(uri: str, name: str, alias: str, version: str) -> None:
    """Point an alias to a version."""
    _asking(uri, lambda server: server.set_registered_model_alias(name, alias, version))


def delete_alias(uri: str, name: str, alias: str) -> None:
    """Remove an alias; nothing happens when it is not there."""
    if by_alias(uri, name, alias) is not None:
        _asking(uri, lambda server: server.delete_registered_model_alias(name, alias))


def tag_version(uri: str, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    where = (version.name, version.version)
    for name, value in tags.items():
        _asking(uri, partial(_tag_version, where=where, name=name, value=redact(value)[:MAX_TAG]))


def _tag_version(server: Any, *, where: tuple[str, str], name: str, value: str) -> None:
    server.set_model_version_tag(*where, name, value)


def _version(found: Any) -> Version:
    return Version(
        name=str(found.name),
        version=str(found.version),
        run_id=str(found.run_id),
        source=str(found.source),
        tags=dict(found.tags),
    )

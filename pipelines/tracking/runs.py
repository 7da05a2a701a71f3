"""MLflow runs, found again by the key of what they did."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from pipelines import storage
from pipelines.errors import UserError, redact
from pipelines.tracking import environment
from pipelines.tracking.client import MAX_DIGEST, MAX_PARAMS, SQLITE, UNKNOWN, client, is_there

KEY_TAG = "pipeline_key"


COMMIT_TAG = "mlflow.source.git.commit"


def experiment_id(server: MlflowClient, name: str, store: str) -> str:
    """Find or create an experiment; with SQLite its artifacts go to the store, not to the cwd.

    Raises:
        UserError: it was deleted; MLflow keeps its name.
    """
    if found := server.get_experiment_by_name(name):
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise UserError(
                f"experiment is '{name}', which was deleted on that server; restore it (mlflow "
                f"experiments restore --experiment-id {found.experiment_id}) or give another "
                "--experiment"
            )
        return str(found.experiment_id)
    artifacts = None
    if server.tracking_uri.startswith(SQLITE):
        artifacts = (storage.local_path(storage.absolute(store)) / "mlartifacts").as_uri()
    try:
        return str(server.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        if found := server.get_experiment_by_name(name):  # another job was first
            return str(found.experiment_id)
        raise


def find_run(server: MlflowClient, experiment: str, key: str) -> Run | None:
    """The run of a pipeline key, the oldest if a race made two."""
    runs = server.search_runs(
        [experiment], f"tags.{KEY_TAG} = '{key}'", order_by=["attributes.start_time ASC"]
    )
    return runs[0] if runs else None


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run is, before it exists on a server."""

    uri: str
    store: str
    experiment: str
    key: str
    """Content key of the work: the same work finds its run again."""
    name: str
    params: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset_uri: str = ""
    dataset_fingerprint: str = ""


def ensure_run(spec: RunSpec) -> str:
    """Find the run of the key and set it running again, or create it; returns the run id."""
    server = client(spec.uri)
    name = environment.experiment_name(server, spec.experiment)
    experiment = experiment_id(server, name, spec.store)
    run = find_run(server, experiment, spec.key)
    if run is None:
        # With who started it and by which command, as MLflow's own runs have it.
        own = {**_shown(spec.tags), KEY_TAG: spec.key, COMMIT_TAG: git_commit()}
        tags = resolve_tags({**environment.parent_tags(server), **own})
        run = server.create_run(experiment, run_name=spec.name, tags=tags)
    else:
        server.update_run(run.info.run_id, status="RUNNING")
        if run.data.tags.get(COMMIT_TAG, UNKNOWN) == UNKNOWN:
            server.set_tag(run.info.run_id, COMMIT_TAG, git_commit())
    run_id = str(run.info.run_id)
    # Of a run that was found, too: the server may have gone away between these requests.
    missing = sorted(spec.params.keys() - run.data.params.keys())
    params = [Param(name, redact(str(spec.params[name]))[:6000]) for name in missing]
    for start in range(0, len(params), MAX_PARAMS):
        server.log_batch(run_id, params=params[start : start + MAX_PARAMS])
    if spec.dataset_fingerprint and not (run.inputs and run.inputs.dataset_inputs):
        log_dataset(server, run_id, spec.dataset_uri, spec.dataset_fingerprint, "training")
    return run_id


def _shown(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that tell no password."""
    return {name: redact(value) for name, value in tags.items()}


def log_dataset(
    server: MlflowClient, run_id: str, uri: str, fingerprint: str, context: str
) -> None:
    """Log a prepared dataset as an input of a run."""
    uri = redact(uri)
    kind = "local" if storage.is_local(uri) else uri.split("://")[0]
    logged = Dataset(
        name=uri.rstrip("/").rsplit("/", 1)[-1],
        digest=fingerprint[:MAX_DIGEST],
        source_type=kind,
        source=json.dumps({"uri": uri}),
        profile=json.dumps({"fingerprint": fingerprint}),
    )
    tag = InputTag("mlflow.data.context", context)
    server.log_inputs(run_id, datasets=[DatasetInput(logged, [tag])])


@cache
def git_commit() -> str:
    """The commit of this checkout, `-dirty` with changes; outside of one GIT_COMMIT or `unknown`.

    `ray job submit` leaves the repository behind; images and submissions set the variable.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            [*command, "--abbrev=40", "--match="], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT", UNKNOWN)
    return found.stdout.strip()


def log_bytes(server: MlflowClient, run_id: str, path: str, data: bytes) -> None:
    """Log a file of a run from memory."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary, name)
        local.write_bytes(data)
        server.log_artifact(run_id, str(local), folder or None)


def run_of_key(uri: str, key: str | None) -> str | None:
    """Id of the run of a pipeline key, in any experiment; None when the server knows none."""
    if key is None or not is_there(uri):
        return None
    server = client(uri)
    for experiment in server.search_experiments():
        if run := find_run(server, experiment.experiment_id, key):
            return str(run.info.run_id)
    return None

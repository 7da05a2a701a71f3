"""MLflow runs, found again by the key of what they did."""

import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import PIL.Image
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from pipelines import storage
from pipelines.errors import UserError, redact
from pipelines.storage import lease
from pipelines.tracking import environment
from pipelines.tracking.client import MAX_DIGEST, MAX_PARAMS, SQLITE, UNKNOWN, client, is_there

KEY_TAG = "pipeline_key"


COMMIT_TAG = "mlflow.source.git.commit"


STORE_TAG = "pipeline_store"  # the id of the store whose job made the run


OWNER_TAG, ALIVE_TAG = "pipeline_owner", "pipeline_alive_until"


ALIVE_S = 900.0  # for which a job that says nothing more is presumed to live


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


def find_run(
    server: MlflowClient, experiment: str, key: str, store: str | None = None
) -> Run | None:
    """The run of a pipeline key, the oldest if a race made two.

    Args:
        server: to ask.
        experiment: its id.
        key: content key of the work.
        store: whose jobs made the run; None: of any. One of before 2026-11-28 does not say it, and
            belongs to the store that its parameters name, or to any if they name none.
    """
    runs: list[Run] = server.search_runs(
        [experiment], f"tags.{KEY_TAG} = '{key}'", order_by=["attributes.start_time ASC"]
    )
    if store is not None:
        identity = storage.ensure_store_id(store)
        own = [run for run in runs if run.data.tags.get(STORE_TAG) == identity]
        runs = own or [run for run in runs if _may_be_of(run, store, server.tracking_uri)]
    return runs[0] if runs else None


def _may_be_of(run: Run, store: str, uri: str) -> bool:
    """Whether a run that carries no store's id may be of a store."""
    if STORE_TAG in run.data.tags:
        return False
    home = storage.absolute(store)
    named = run.data.params.get("store")
    return (
        named is None
        or storage.absolute(named) == home
        or (uri.startswith(SQLITE) and storage.is_within(uri.removeprefix(SQLITE), home))
    )


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
    run = find_run(server, experiment, spec.key, spec.store)
    ours = {OWNER_TAG: lease.new_owner(), ALIVE_TAG: alive_until()}
    if identity := storage.ensure_store_id(spec.store):
        ours[STORE_TAG] = identity
    if run is None:
        # With who started it and by which command, as MLflow's own runs have it.
        own = {**_shown(spec.tags), KEY_TAG: spec.key, COMMIT_TAG: git_commit(), **ours}
        tags = resolve_tags({**environment.parent_tags(server), **own})
        run = server.create_run(experiment, run_name=spec.name, tags=tags)
    else:
        if run.data.tags.get(COMMIT_TAG, UNKNOWN) == UNKNOWN:
            ours[COMMIT_TAG] = git_commit()
        tags = [RunTag(name, value) for name, value in ours.items()]
        server.log_batch(run.info.run_id, tags=tags)  # first: a running run is somebody's
        server.update_run(run.info.run_id, status="RUNNING")
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


def log_image(server: MlflowClient, run_id: str, key: str, step: int, png: bytes) -> None:
    """Log an image of a step, unless the run has one of that step: a resumed run makes it again."""
    begins = f"images/{key}+step+{step}+"  # as MLflow calls it
    if any(found.path.startswith(begins) for found in server.list_artifacts(run_id, "images")):
        return
    with PIL.Image.open(io.BytesIO(png)) as image:
        server.log_image(run_id, image.convert("RGB"), key=key, step=step, synchronous=True)


def run_of_key(uri: str, key: str | None, store_id: str | None = None) -> str | None:
    """Id of the run of a pipeline key, in any experiment; None when the server knows none.

    Args:
        uri: tracking server.
        key: content key of the work; None has no run.
        store_id: of the store whose run is meant, if several have one.
    """
    if key is None or not is_there(uri):
        return None
    server = client(uri)
    runs: list[Run] = server.search_runs(
        [each.experiment_id for each in server.search_experiments()],
        f"tags.{KEY_TAG} = '{key}'",
        order_by=["attributes.start_time ASC"],
    )
    own = [run for run in runs if run.data.tags.get(STORE_TAG) == store_id]
    return str((own or runs)[0].info.run_id) if runs else None


def alive_until() -> str:
    """The value of ALIVE_TAG: seconds of the Unix clock up to which a job is presumed to live."""
    return f"{time.time() + ALIVE_S:.0f}"


def end_abandoned(uri: str, run_id: str) -> list[str]:
    """End the runs that dead jobs have left running in the experiment of a run of ours.

    `ray job stop` and a lost machine leave them so. A job is dead when it was a process of this
    machine that is gone, or has not said for ALIVE_S that it lives.

    Returns:
        what was ended, as name, id and job.
    """
    server = client(uri)
    experiment = server.get_run(run_id).info.experiment_id
    running = server.search_runs(
        [experiment], f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} LIKE '%'"
    )
    ended = []
    for run in running:
        owner, until = run.data.tags[OWNER_TAG], run.data.tags.get(ALIVE_TAG, "0")
        is_late = until.isdecimal() and int(until) < time.time()
        if run.info.run_id != run_id and (is_late or lease.is_dead(owner)):
            server.set_terminated(run.info.run_id, "KILLED")
            ended.append(f"{run.info.run_name} ({run.info.run_id}) of {owner}")
    return ended

"""MLflow: runs found by key, a recorder that never stops training, and logged models.

The only importer of mlflow, beside the served model. Every call names its server and its run;
nothing global is set but quieter defaults.
"""

import json
import logging
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import mlflow
import mlflow.artifacts
import mlflow.models
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import Schema, TensorSpec

from pipelines import storage
from pipelines.errors import UserError, first_line

KEY_TAG = "pipeline_key"
COMMIT_TAG = "mlflow.source.git.commit"
WEIGHTS_TAG = "weights_sha256"
UNKNOWN = "unknown"
SQLITE = "sqlite:///"  # and the path of the file
MAX_PARAMS, MAX_METRICS = 100, 1000  # per request, a limit of the server
MAX_DIGEST = 36  # characters, likewise
RETRY_WAIT_S = 5.0
FLUSH_POLL_S = 0.05
CLIENT_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The recorder asks an absent server again itself; the client must not block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
GLOBAL_SERVER_LOCK = threading.RLock()
SERVED_MODEL = Path(__file__).with_name("served_model.py")


def tracking_uri(requested: str | None, store: str) -> str:
    """The server to use: the flag, else MLFLOW_TRACKING_URI, else SQLite inside the store.

    Nobody is asked, since a server may be away for a while.

    Raises:
        UserError: MLflow can never speak to that, or no SQLite file can live in the store.
    """
    if uri := requested or os.environ.get("MLFLOW_TRACKING_URI"):
        return _spoken(uri)
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


def _spoken(uri: str) -> str:
    """The URI, if MLflow or a plug-in of it speaks its protocol; plain files it takes no longer."""
    try:
        _tracking_store_registry.get_store_builder(uri)
        known = (":" in uri and not uri.startswith("file:")) or uri == "databricks"
    except (MlflowException, ValueError):  # ValueError: no URI at all
        known = False
    if not known:
        raise UserError(
            f"tracking_uri is '{uri}', which is no tracking server; --tracking-uri, or else "
            "MLFLOW_TRACKING_URI, must be http://HOST:PORT, https://HOST, or a database such as "
            "sqlite:///FOLDER/mlflow.db; without both the store has its own"
        )
    return uri


def client(uri: str) -> MlflowClient:
    """A client of a tracking server that is also the model registry.

    Raises:
        MlflowException: its database is away, or is none; while connecting, MLflow itself would
            let an error of the driver through.
    """
    quieten()
    if uri.startswith(SQLITE):  # MLflow makes the file, but not its folder
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException:
        raise
    except Exception as error:
        raise MlflowException(first_line(error)) from error


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
def quieten() -> None:
    """Only MLflow's errors are shown: schema migrations and hints are not the user's business."""
    for name in ("mlflow", "alembic", "git", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A database that fails is raised here too, and told once: not with a stack at every try.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


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
    experiment = experiment_id(server, spec.experiment, spec.store)
    run = find_run(server, experiment, spec.key)
    if run is None:
        # With who started it and by which command, as MLflow's own runs have it.
        tags = resolve_tags({**spec.tags, KEY_TAG: spec.key, COMMIT_TAG: git_commit()})
        run = server.create_run(experiment, run_name=spec.name, tags=tags)
    else:
        server.update_run(run.info.run_id, status="RUNNING")
        if run.data.tags.get(COMMIT_TAG, UNKNOWN) == UNKNOWN:
            server.set_tag(run.info.run_id, COMMIT_TAG, git_commit())
    run_id = str(run.info.run_id)
    # Of a run that was found, too: the server may have gone away between these requests.
    missing = sorted(spec.params.keys() - run.data.params.keys())
    params = [Param(name, str(spec.params[name])[:6000]) for name in missing]
    for start in range(0, len(params), MAX_PARAMS):
        server.log_batch(run_id, params=params[start : start + MAX_PARAMS])
    if spec.dataset_fingerprint and not (run.inputs and run.inputs.dataset_inputs):
        log_dataset(server, run_id, spec.dataset_uri, spec.dataset_fingerprint, "training")
    return run_id


def log_dataset(
    server: MlflowClient, run_id: str, uri: str, fingerprint: str, context: str
) -> None:
    """Log a prepared dataset as an input of a run."""
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


def described(uri: str, error: Exception) -> str:
    """What went wrong with a server, as a recorder says it: databases add their statements."""
    return f"{uri}: {type(error).__name__}: {first_line(error)}"[:500]


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the server or its storage is away."""
    return isinstance(error, MlflowException) or storage.may_pass(error)


class Outcome(NamedTuple):
    """How a recorder ended."""

    run_id: str | None
    problem: str | None
    """Why something is still undelivered; None when all is on the server."""


class Recorder:
    """Delivers metrics, artifacts and tags to one run from a thread of its own.

    Nothing here blocks or raises into the caller. While the server is away everything waits in
    order and is tried again. A metric point that the server already has (key, step) is not sent
    again, so that a resumed run can replay its history.
    """

    def __init__(self, spec: RunSpec) -> None:
        """Start delivering; the run itself is found or created by the thread."""
        self._spec = spec
        self._run_id: str | None = None
        self._delivered: dict[str, int] = {}
        self._metrics: list[Metric] = []
        self._other: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-recorder", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int, time_s: float | None = None) -> None:
        """Queue one point per metric; values that are not numbers MLflow can store are left out."""
        at = int(1000 * (time.time() if time_s is None else time_s))
        points = [Metric(k, float(v), at, step) for k, v in values.items() if np.isfinite(v)]
        with self._lock:
            self._metrics += points
        self._wake.set()

    def artifact(self, path: str, data: bytes) -> None:
        """Queue a file; a later one of the same path replaces it."""
        with self._lock:
            self._other[f"artifact:{path}"] = data
        self._wake.set()

    def tag(self, name: str, value: str) -> None:
        """Queue a tag."""
        with self._lock:
            self._other[f"tag:{name}"] = value
        self._wake.set()

    @property
    def run_id(self) -> str | None:
        """The run's id, once the server has answered."""
        return self._run_id

    @property
    def problem(self) -> str | None:
        """Why delivery is late at the moment, if it is."""
        return self._problem

    def flush(self, wait_s: float) -> Outcome:
        """Wait until everything is delivered, for at most `wait_s`; the run goes on."""
        self._wake.set()
        deadline = time.monotonic() + wait_s
        while (late := self._waiting) and time.monotonic() < deadline:
            time.sleep(FLUSH_POLL_S)
        return self._outcome(late, wait_s)

    def finish(self, status: str | None, wait_s: float = 60.0) -> Outcome:
        """Deliver what is left for at most `wait_s` and set the run's status; None leaves it."""
        if status is not None:
            with self._lock:
                self._other["status"] = status
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)
        return self._outcome(self._thread.is_alive(), wait_s)

    @property
    def _waiting(self) -> bool:
        return bool(self._run_id is None or self._metrics or self._other)

    def _outcome(self, late: bool, wait_s: float) -> Outcome:
        problem = self._problem or f"{self._spec.uri} did not take everything within {wait_s:.0f} s"
        return Outcome(self._run_id, problem if late else None)

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self._deliver()
                self._problem = None
            except Exception as error:  # whatever the server does, training goes on
                self._problem = described(self._spec.uri, error)
                self._delivered.clear()  # a request that failed may still have arrived
                if self._closing.wait(RETRY_WAIT_S):
                    time.sleep(1.0)
                self._wake.set()
                continue
            if self._closing.is_set() and not self._wake.is_set():
                return

    def _deliver(self) -> None:
        if self._run_id is None:
            self._run_id = ensure_run(self._spec)
        server = client(self._spec.uri)
        while points := self._metrics[:MAX_METRICS]:
            new = []
            for point in points:
                if point.step > self._last_step(server, point.key):
                    self._delivered[point.key] = point.step
                    new.append(point)
            server.log_batch(self._run_id, metrics=new)
            with self._lock:
                del self._metrics[: len(points)]
        for name in list(self._other):
            value = self._other[name]
            self._deliver_other(server, self._run_id, name, value)
            with self._lock:
                if self._other[name] is value:
                    del self._other[name]

    def _last_step(self, server: MlflowClient, key: str) -> int:
        if key not in self._delivered:
            history = server.get_metric_history(self._run_id, key)
            self._delivered[key] = max((point.step for point in history), default=-1)
        return self._delivered[key]

    def _deliver_other(self, server: MlflowClient, run_id: str, name: str, value: Any) -> None:
        if name == "status":
            server.set_terminated(run_id, status=value)
        elif name.startswith("tag:"):
            server.log_batch(run_id, tags=[RunTag(name.removeprefix("tag:"), value)])
        else:
            log_bytes(server, run_id, name.removeprefix("artifact:"), value)


def log_bytes(server: MlflowClient, run_id: str, path: str, data: bytes) -> None:
    """Log a file of a run from memory."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary, name)
        local.write_bytes(data)
        server.log_artifact(run_id, str(local), folder or None)


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
                select(uri)
            yield
        finally:
            for name, select in setters.items():
                select(before[name])
                os.environ.pop(name, None)
                if before[name] is not None:
                    os.environ[name] = str(before[name])


def log_model(uri: str, run_id: str, folder: Path, side: int, requirements: list[str]) -> str:
    """Log a model folder (`weights.safetensors`, `model.json`) as a pyfunc of a run, once.

    The model is code of ours (`served_model.py`, `ce_model`) beside plain tensors: loading it
    unpickles nothing. Input and output are described in `served_model.py`. The run goes on: whoever
    has begun it ends it. A run that has a whole model of these weights gets no second one: the
    server may have gone away after the model and before the summary that names it.

    Returns:
        the model's URI, `models:/<model id>`.
    """
    digest = storage.sha256_of(folder / "weights.safetensors")
    if logged_before := _model_of_weights(uri, run_id, digest):
        return logged_before
    images, masks = ("image", np.dtype(np.uint8)), ("mask", np.dtype(np.uint8))
    signature = ModelSignature(
        inputs=Schema(
            [
                TensorSpec(images[1], (-1, side, side, 3), images[0]),
                TensorSpec(masks[1], (-1, side, side), masks[0]),
            ]
        ),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1, -1), "features"),
                TensorSpec(np.dtype(np.uint8), (-1, side, side, 3), "filled"),
            ]
        ),
    )
    mask = np.zeros((2, side, side), np.uint8)
    mask[:, side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = 1
    ramp = np.arange(side, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None, None], (2, side, side, 3))
    packages = Path(__file__).parents[1]
    with global_server(uri), mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_MODEL),
            artifacts={"model": folder.as_uri()},
            code_paths=[str(packages / "ce_model"), str(packages / "pipelines")],
            pip_requirements=requirements,
            signature=signature,
            input_example={"image": np.ascontiguousarray(image), "mask": mask},
            tags={WEIGHTS_TAG: digest},
        )
        mlflow.end_run("RUNNING")  # else the end of the block would call it FINISHED
    return str(logged.model_uri)


def _model_of_weights(uri: str, run_id: str, digest: str) -> str | None:
    """URI of the oldest whole model of these weights that a run has logged."""
    server = client(uri)
    models = server.search_logged_models(
        [server.get_run(run_id).info.experiment_id],
        f"source_run_id = '{run_id}' AND tags.{WEIGHTS_TAG} = '{digest}'",
        order_by=[{"field_name": "creation_timestamp"}],
    )
    whole = [str(model.model_uri) for model in models if model.status == LoggedModelStatus.READY]
    return whole[0] if whole else None


def run_of_key(uri: str, key: str | None) -> str | None:
    """Id of the run of a pipeline key, in any experiment; None when the server knows none."""
    if key is None or not is_there(uri):
        return None
    server = client(uri)
    for experiment in server.search_experiments():
        if run := find_run(server, experiment.experiment_id, key):
            return str(run.info.run_id)
    return None


def run_model(uri: str, run_id: str) -> str:
    """URI of the model folder that a pretraining run wrote.

    Raises:
        UserError: no such run, or it has not finished.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            require_there(uri)
            local = client(uri).download_artifacts(run_id, "summary.json", temporary)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"model is run '{run_id}', from which {uri} gives no summary.json "
                f"({first_line(error)}); name a finished pretraining run or a model folder"
            ) from None
        return str(json.loads(Path(local).read_text())["model"])


def download_model(uri: str, model_uri: str, folder: Path) -> str | None:
    """Copy the model folder inside a logged or registered model; returns the run that logged it.

    Args:
        uri: tracking server, which is also the registry.
        model_uri: models:/name@alias, models:/name/version or models:/<model id>.
        folder: where `weights.safetensors` and `model.json` go.

    Raises:
        UserError: no such model, or not one of ours.
    """
    try:
        require_there(uri)
        client(uri)  # what connects is asked first, where its errors are MLflow's
        with global_server(uri):
            mlflow.artifacts.download_artifacts(
                artifact_uri=model_uri, dst_path=str(folder / "logged")
            )
    except (MlflowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"model is '{model_uri}', which {uri} does not give: {reason}") from None
    found = next((folder / "logged").rglob("weights.safetensors"), None)
    if found is None:
        raise UserError(f"model is '{model_uri}', which holds no weights.safetensors of ours")
    for name in ("weights.safetensors", "model.json"):
        (found.parent / name).replace(folder / name)
    run_id = mlflow.models.Model.load(str(folder / "logged")).run_id
    return None if run_id is None else str(run_id)

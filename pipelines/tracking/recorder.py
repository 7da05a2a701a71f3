"""MLflow: runs found by key, a recorder that never stops training, and logged models.

The only importer of mlflow, beside the served model. Every call names its server and its run;
nothing global is set but quieter defaults.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from pipelines.errors import UserError, redact
from pipelines.tracking.client import (
    MAX_METRICS,
    SQLITE,
    client,
    describe_error,
    describe_refusal,
)
from pipelines.tracking.runs import (
    ALIVE_S,
    ALIVE_TAG,
    RunSpec,
    alive_until,
    end_abandoned,
    ensure_run,
    log_bytes,
    log_image,
)

RETRY_WAIT_S = 5.0


TELL_AFTER_S = 30.0  # of an absence, which is told once


SAY_ALIVE_S = ALIVE_S / 3


FLUSH_POLL_S = 0.05


class Delivery(NamedTuple):
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

    def __init__(self, spec: RunSpec, tell: Callable[[str], None] | None = None) -> None:
        """Start delivering; the run itself is found or created by the thread.

        Args:
            spec: the run.
            tell: gets a line, from the thread, when the server is away, when it is back, and when
                a run that a dead job left running was ended.
        """
        self._spec, self._tell = spec, tell or (lambda _: None)
        self._away_since: float | None = None
        self._told_away = False
        self._say_alive_at = time.monotonic() + SAY_ALIVE_S
        self._run_id: str | None = None
        self._delivered: dict[str, int] = {}
        self._metrics: list[Metric] = []
        self._other: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._problem: str | None = None
        self._refusal: UserError | None = None
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

    def image(self, key: str, step: int, png: bytes) -> None:
        """Queue an image of a step, which MLflow shows along the steps; it is stored once."""
        with self._lock:
            self._other[f"image:{key}:{step}"] = png
        self._wake.set()

    def tag(self, name: str, value: str) -> None:
        """Queue a tag."""
        with self._lock:
            self._other[f"tag:{name}"] = redact(value)
        self._wake.set()

    @property
    def run_id(self) -> str | None:
        """The run's id, once the server has answered."""
        return self._run_id

    @property
    def problem(self) -> str | None:
        """Why delivery is late at the moment, if it is."""
        return self._problem

    def begin(self, wait_s: float) -> str | None:
        """Wait until the run is there, for at most `wait_s`; returns why it is not, for a warning.

        Raises:
            UserError: it never will be, such as in an experiment that was deleted.
        """
        self._wake.set()
        deadline = time.monotonic() + wait_s
        while self._run_id is None and not self._problem and time.monotonic() < deadline:
            time.sleep(FLUSH_POLL_S)
        if self._refusal is not None:
            raise self._refusal
        making = not self._problem and self._spec.uri.startswith(SQLITE)  # a new file takes seconds
        if self._run_id is not None or making:
            return None
        self._told_away = True
        return self._problem or f"{self._spec.uri} has not answered within {wait_s:.0f} s"

    def flush(self, wait_s: float) -> Delivery:
        """Wait until everything is delivered, for at most `wait_s`; the run goes on."""
        self._wake.set()
        deadline = time.monotonic() + wait_s
        while (late := self._waiting) and time.monotonic() < deadline:
            time.sleep(FLUSH_POLL_S)
        return self._outcome(late, wait_s)

    def finish(self, status: str | None, wait_s: float = 60.0) -> Delivery:
        """Deliver what is left for at most `wait_s` and set the run's status; None leaves it."""
        if status is not None:
            with self._lock:
                self._other["status"] = status
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)
        return self._outcome(self._thread.is_alive() or self._refusal is not None, wait_s)

    @property
    def _waiting(self) -> bool:
        return bool(self._run_id is None or self._metrics or self._other)

    def _outcome(self, late: bool, wait_s: float) -> Delivery:
        problem = self._problem or f"{self._spec.uri} did not take everything within {wait_s:.0f} s"
        return Delivery(self._run_id, problem if late else None)

    def _work(self) -> None:
        while True:
            self._wake.wait(SAY_ALIVE_S)
            self._wake.clear()
            try:
                self._deliver()
            except Exception as error:  # whatever the server does, training goes on
                refusal = describe_refusal(self._spec.uri, error)
                self._refusal = error if isinstance(error, UserError) else refusal
                self._problem = describe_error(self._spec.uri, error)  # last: `begin` waits for it
                self._delivered.clear()  # a request that failed may still have arrived
                self._note_away()
                if self._closing.wait(RETRY_WAIT_S):
                    if self._refusal is not None:
                        return
                    time.sleep(1.0)
                self._wake.set()
                continue
            self._note_back()
            if self._closing.is_set() and not self._wake.is_set():
                return

    def _note_away(self) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > TELL_AFTER_S and not self._told_away:
            self._told_away = True
            self._tell(
                f"warning: MLflow does not answer ({self._problem}); what is measured waits and is "
                "delivered when it does"
            )

    def _note_back(self) -> None:
        self._problem = self._refusal = self._away_since = None
        if self._told_away:
            self._told_away = False
            self._tell("MLflow answers again: it has everything that waited")

    def _deliver(self) -> None:
        if self._run_id is None:
            self._run_id = ensure_run(self._spec)
            for each in end_abandoned(self._spec.uri, self._run_id):
                self._tell(f"the run {each} was left running by a job that is gone: now KILLED")
        server = client(self._spec.uri)
        if time.monotonic() > self._say_alive_at:
            server.set_tag(self._run_id, ALIVE_TAG, alive_until())
            self._say_alive_at = time.monotonic() + SAY_ALIVE_S
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
        elif name.startswith("image:"):
            _, key, step = name.split(":")
            log_image(server, run_id, key, int(step), value)
        else:
            log_bytes(server, run_id, name.removeprefix("artifact:"), value)

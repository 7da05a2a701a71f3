"""What the driver watches while workers train: progress and memory."""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import ray
import ray.train
from rich.console import Console

from pipelines import storage
from pipelines.errors import UserError
from pipelines.pretrain import panel
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.gauges import TrainingGauges
from pipelines.pretrain.messages import (
    CheckpointWritten,
    CurvePoint,
    DataRead,
    Diverged,
    FaultFound,
    Message,
    Note,
    PanelReady,
    Resumed,
    StepsDone,
    SystemPoint,
    TraceReady,
)
from pipelines.pretrain.probe import Probes
from pipelines.pretrain.stall import StallWatch
from pipelines.pretrain.stop import StopRequest
from pipelines.pretrain.task import Task
from pipelines.runtime.progress import ProgressDisplay
from pipelines.storage import Use
from pipelines.tracking.event_file import EventFile
from pipelines.tracking.recorder import Recorder


class TrainingProgress(ProgressDisplay):
    """Step, losses and rate."""

    def __init__(self, console: Console, steps: int) -> None:
        """Show nothing until the first step."""
        super().__init__(console, "step", steps)
        self._steps = steps
        self._text, self._step_s = "", math.inf

    def step(self, step: int) -> None:
        """Show how far it is, with the figures of the last record."""
        left_s = (self._steps - step) * self._step_s if step < self._steps else 0.0
        self.update(step, self._text, left_s=left_s)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Show a record of the curves."""
        losses = "  ".join(
            f"{short} {values[name]:.4f}"
            for short, name in (
                ("rec", "loss/reconstruction"),
                ("class", "loss/classification"),
                ("joint", "loss/joint"),
                ("D", "loss/discriminator"),
            )
            if name in values and is_told(name, values)
        )
        self._text = f"{losses}  {values['images_per_second']:.0f} images/s"
        # A resumed run did not make the steps before in this time.
        self._step_s = values["seconds_per_step"]
        self.step(step)


def is_told(loss: str, losses: Mapping[str, float]) -> bool:
    """Whether a person reads it: a joint loss without a discriminator is the other one again."""
    return loss != "loss/joint" or "loss/discriminator" in losses


def memory_of_tree() -> int:
    """Bytes of memory of this process and all below it, shared pages counted once (PSS)."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended while we looked
    return total


POLL_S = 0.5


MEMORY_POLL_S = 3.0
PROBE_WAIT_S = 120.0  # for the probe of the last checkpoint, when training has ended


class DriverWatch:
    """Takes rank 0's records to the screen, to the recorder and to the panel file."""

    def __init__(
        self,
        config: PretrainConfig,
        task: Task,
        recorder: Recorder,
        console: Console,
    ) -> None:
        """Follow nothing yet."""
        self._config, self._task, self._recorder = config, task, recorder
        self._progress = TrainingProgress(console, task.plan.steps)
        self._gauges = TrainingGauges(task.stage_uri.rpartition("/")[2])
        self._ended = threading.Event()
        self.peak_memory_bytes = 0  # of this process and all below it: on one machine, everything
        self.reads = Use()  # of the data tasks, where there is a cache of shards
        self._warned: set[str] = set()
        self.diverged: Diverged | None = None
        self.faults: list[FaultFound] = []
        self._probes = Probes(task, config.probe_every, self._add_probe, self._progress.note)
        self._events: EventFile | None = None
        if "tensorboard" in config.log_to:
            self._events = EventFile(storage.join(task.stage_uri, "tensorboard"))
        self.stop = StopRequest(config.time_limit_s)

    @contextmanager
    def running(self, mailbox: Any) -> Iterator[None]:
        """Follow a mailbox from a thread while the block runs."""
        thread = threading.Thread(target=self._follow, args=(mailbox,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._take(ray.get(mailbox.drain.remote()))
            self._probes.close(PROBE_WAIT_S if self.stop.reason is None else 0.0)
            self._publish_events(now=True)
            self._progress.close()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.note(text)

    def replay(self, history: list[dict[str, Any]]) -> None:
        """Hand a whole history to the recorder, which leaves out what the server has."""
        if self._events is not None:
            self._events.clear()
        for record in history:
            self._add(record["values"], record["step"], record["time"])

    def _add(self, values: dict[str, float], step: int, time_s: float) -> None:
        self._recorder.metrics(values, step, time_s)
        if self._events is not None:
            self._events.scalars(values, step, time_s)

    def _add_probe(self, values: dict[str, float], step: int, time_s: float) -> None:
        self._recorder.metrics(values, step, time_s)
        if self._events is not None:
            self._events.scalars(values, step, time_s, in_history=False)

    def _publish_events(self, *, now: bool = False) -> None:
        if self._events is not None:
            try:
                self._events.publish(now=now)
            except (OSError, UserError) as error:  # the next time has all of it
                self._progress.note(f"warning: the event file is not in the store: {error}")

    def _follow(self, mailbox: Any) -> None:
        memory_at = 0.0
        stall = StallWatch(self._config.stall_timeout_s, mailbox, self._progress.note)
        is_told = False
        while not self._ended.wait(POLL_S):
            self._take(ray.get(mailbox.drain.remote()))
            self._probes.collect()
            self._publish_events()
            if not is_told and self.stop.is_due():
                is_told = True
                mailbox.request_stop.remote()
                self._progress.note(f"{self.stop.reason}: ending with a checkpoint of this step")
            stall.look()
            if time.monotonic() - memory_at > MEMORY_POLL_S:
                memory_at = time.monotonic()
                self.peak_memory_bytes = max(self.peak_memory_bytes, memory_of_tree())

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            match message:
                case CurvePoint(step, time_s, values):
                    self._add(values, step, time_s)
                    self._gauges.record(step, values)
                    if "images_per_second" in values:
                        self._progress.record(step, values)
                        self._record_reads(step, time_s)
                case DataRead(use, warnings):
                    self.reads = self.reads.plus(use)
                    for text in warnings:
                        self._warn_once(text)
                case CheckpointWritten(step):
                    self._probes.checkpoint(step)
                case SystemPoint(step, time_s, values):
                    self._recorder.metrics(values, step, time_s)
                case TraceReady(uri):
                    self._publish_trace(uri)
                case PanelReady(step, images):
                    self._publish_panel(step, images)
                case Resumed(step, history):
                    self._progress.note(f"resumed at step {step}")
                    self._gauges.resumed()
                    self.replay(history)
                case StepsDone(step):
                    self._progress.step(step)
                case Note(text):
                    self._progress.note(text)
                case Diverged():
                    self.diverged = message
                case FaultFound():
                    self.faults.append(message)

    def _record_reads(self, step: int, time_s: float) -> None:
        if any(self.reads):
            values = {f"data/{name}": float(n) for name, n in self.reads._asdict().items()}
            self._recorder.metrics(values, step, time_s)

    def _warn_once(self, text: str) -> None:
        """Many processes of a node meet the same."""
        if text not in self._warned:
            self._warned.add(text)
            self._progress.note(text)

    def _publish_trace(self, uri: str) -> None:
        self._progress.note(f"traced steps: {uri}")
        try:
            self._recorder.artifact(f"profile/{uri.rpartition('/')[2]}", storage.read_bytes(uri))
        except (OSError, UserError) as error:
            self._progress.note(f"warning: the trace is not in MLflow: {error}")

    def _publish_panel(self, step: int, images: dict[str, Any]) -> None:
        title = f"{self._task.recipe.about}, step {step}: validation"
        png = panel.draw(images, title)
        try:
            storage.publish(storage.join(self._task.stage_uri, "panel.png"), png)
        except (OSError, UserError) as error:  # the storage is away: the curves continue
            self._progress.note(f"warning: the panel of step {step} is not in the store: {error}")
        self._recorder.image("panel", step, png)
        self._recorder.artifact("panel.png", png)
        if self._events is not None:
            self._events.image("panel", png, step)

"""A trace of some steps, kernel by kernel, for chrome://tracing, Perfetto or TensorBoard."""

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines import storage

AFTER = 10  # steps of a process before the first that is traced: they compile and record


class StepProfiler:
    """Traces `steps` steps of this process, beginning after the first AFTER; 0 traces none."""

    def __init__(self, steps: int, device: torch.device) -> None:
        """Nothing traced yet."""
        self._first, self._last = AFTER, AFTER + steps
        self._steps, self._device = steps, device
        self._taken = 0
        self._running: profile | None = None

    def before_step(self) -> None:
        """Begin where it is time."""
        if self._steps and self._taken == self._first:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._running = profile(activities=activities)
            self._running.start()

    def after_step(self, done: int, stage_uri: str) -> str | None:
        """End where it is time; the place of the trace.

        Args:
            done: steps of the run that are done.
            stage_uri: of the training.
        """
        self._taken += 1
        if self._running is None or self._taken < self._last:
            return None
        traced, self._running = self._running, None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        traced.stop()
        uri = storage.join(
            stage_uri, "profile", f"steps-{done - self._steps:08d}-{done:08d}.json.gz"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            traced.export_chrome_trace(str(path))
            storage.publish(uri, gzip.compress(path.read_bytes()))
        return uri

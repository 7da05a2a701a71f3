"""How long the training device had nothing to compute on, because the next batch was not there."""

import time
from typing import Any

import torch

Mark = Any
"""A moment: seconds of the host's clock, or a CUDA event."""


class DataWaitClock:
    """Gaps between a step and the next batch, by the clock of the device itself.

    A GPU works asynchronously: while the process waits for a batch, the GPU may still compute.
    """

    def __init__(self, device: torch.device) -> None:
        """No gap yet."""
        self._device = device
        self._began = self._now()
        self._gaps: list[tuple[Mark, Mark]] = []

    def begin(self) -> None:
        """The device has been given all that there is."""
        self._began = self._now()

    def end(self) -> None:
        """The next batch is there."""
        self._gaps.append((self._began, self._now()))

    def take(self) -> float:
        """Seconds of all gaps since the last call; the device must have finished the last batch."""
        gaps, self._gaps = self._gaps, []
        return sum(_seconds(began, ended) for began, ended in gaps)

    def _now(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds(began: Mark, ended: Mark) -> float:
    if isinstance(began, float):
        return float(ended - began)
    return float(began.elapsed_time(ended)) / 1000

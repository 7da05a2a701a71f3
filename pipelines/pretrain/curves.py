"""Curves of a training: averages between two points, and the totals of the whole run."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from pipelines.pretrain.data_wait import DataWaitClock


class Averages(NamedTuple):
    """What happened since the last point."""

    values: dict[str, float]
    """By curve; only times and totals where no update was applied."""
    skipped: list[bool]
    """Of each step: whether its update was left out."""


class Curves:
    """Collects the steps without waiting for the device.

    Attributes:
        data_wait: how long the device waited for batches.
        totals: train_s, wait_s, steps, restarts and skipped of the whole run.
    """

    def __init__(self, device: torch.device, ranks: int, batch_size: int) -> None:
        """Nothing measured yet; `batch_size` is that of all ranks together."""
        self.data_wait = DataWaitClock(device)
        self.totals = {"train_s": 0.0, "wait_s": 0.0, "steps": 0, "restarts": 0, "skipped": 0}
        self._ranks, self._batch_size = ranks, batch_size
        self._sums: dict[str, Tensor] = {}
        self._skipped: list[Tensor] = []
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """Training begins, or resumes, now."""
        self._clock = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not training time."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def resume(self, totals: dict[str, Any], *, restarted: bool) -> None:
        """Continue the totals of a checkpoint, after one more restart or with more steps."""
        self.totals = {**totals, "restarts": totals["restarts"] + restarted}
        self.restart_clock()

    def add(self, values: dict[str, Tensor]) -> None:
        """Collect a step; of a skipped one only that it was skipped."""
        skipped = values["nonfinite"]
        for name in values.keys() - {"nonfinite"}:
            applied = torch.where(skipped.bool(), 0, values[name])
            self._sums[name] = self._sums[name] + applied if name in self._sums else applied
        self._skipped.append(skipped)

    def average(self) -> Averages:
        """Over the applied steps since the last call and over the ranks; waits for the device."""
        names = sorted(self._sums)
        memory = torch.tensor([peak_rss_bytes()], dtype=torch.float64)
        sums = torch.stack([self._sums[name].double() for name in names])
        sums = torch.cat([sums, memory.to(sums.device)])
        if self._ranks > 1:
            torch.distributed.all_reduce(sums)
        skipped = torch.stack(self._skipped).bool().tolist()
        steps, applied = len(skipped), skipped.count(False)
        elapsed, wait_s = time.perf_counter() - self._clock, self.data_wait.take()
        for name, value in (("train_s", elapsed), ("wait_s", wait_s), ("steps", steps),
                            ("skipped", steps - applied)):  # fmt: skip
            self.totals[name] += value
        *measured, peak = sums.tolist()
        count = applied * self._ranks
        values = {n: value / count for n, value in zip(names, measured, strict=True) if count}
        values |= {
            "images_per_second": self._batch_size * steps / elapsed,
            "seconds_per_step": elapsed / steps,
            "data_wait_share": wait_s / elapsed,
            "updates_skipped": float(self.totals["skipped"]),
            "memory/ranks_peak_bytes": peak,
        }
        self._sums, self._skipped = {}, []
        self.restart_clock()
        return Averages(values, skipped)


def peak_rss_bytes() -> float:
    """Largest resident memory this process has had (Linux reports KiB)."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024

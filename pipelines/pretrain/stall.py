"""Training processes that stand still: noticed by the driver, ended, and so restarted by Ray Train.

A process that was stopped, or that waits for one, raises no error. So each training process sends
a sign of life from a thread of its own, twice a second, with the number of things it has done. One
that sends none any more is frozen; one that sends the same number for long hangs in its step. The
driver ends it with SIGKILL, and Ray Train restarts the group from the last checkpoint.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.runtime.mailbox import Failure
from pipelines.runtime.ray_internals import is_training_process

Phase = Literal["step", "data", "other"]
LOOK_S = 1.0  # between two looks at the signs of life
ANSWER_S = 30.0  # for a task that ends a process


class Sign(NamedTuple):
    """What a training process says of itself."""

    rank: int
    node_id: str
    pid: int
    phase: Phase
    """In a step, waiting for a batch, or at what may take long: building, validating, saving."""
    done: int
    """Grows with each change of the phase."""


class StallWatch:
    """On the driver: looks at the signs of life and ends who stands still."""

    def __init__(
        self,
        timeout_s: float,
        mailbox: Any,
        tell: Callable[[str], None],
        end: Callable[[Sign], bool] | None = None,
    ) -> None:
        """Watch nobody yet.

        Args:
            timeout_s: how long a process may send no sign, or stay in one step.
            mailbox: where the signs are.
            tell: gets one line for each process that is ended.
            end: ends a process; False where it has ended before. None: SIGKILL on its node.
        """
        self._timeout_s, self._mailbox, self._tell = timeout_s, mailbox, tell
        self._end = end or end_process
        self._look_after = 0.0
        self._told_of_data = False

    def look(self) -> None:
        """At most every second."""
        if time.monotonic() < self._look_after:
            return
        self._look_after = time.monotonic() + LOOK_S
        signs: list[tuple[Sign, float, float]] = ray.get(self._mailbox.signs.remote())
        silent = [sign for sign, heard_s, _ in signs if heard_s > self._timeout_s]
        still = [sign for sign, _, moved_s in signs if moved_s > self._timeout_s]
        if silent:
            self._end_all(silent, f"sent no sign of life for {self._timeout_s:g} s")
        elif any(sign.phase == "data" for sign in still):
            self._tell_of_data()
        elif still and all(sign.phase == "step" for sign in still):
            self._end_all(still, f"stood still in a step for {self._timeout_s:g} s")
        if not still:
            self._told_of_data = False

    def _end_all(self, signs: list[Sign], why: str) -> None:
        # Those that wait for it fail, or are ended by Ray, and have time for that.
        self._look_after = time.monotonic() + self._timeout_s
        for sign in signs:
            ray.get(self._mailbox.forget.remote(sign.rank, sign.pid))
            if not self._end(sign):
                continue  # of a group that has ended since
            text = (
                f"training worker {sign.rank} (process {sign.pid} on node {sign.node_id[:8]}) {why}"
            )
            ray.get(self._mailbox.fail.remote(Failure(text, final=False)))
            self._tell(
                f"warning: {text}: it is ended, and training restarts from the last checkpoint, "
                "if --max-failures allows"
            )

    def _tell_of_data(self) -> None:
        if not self._told_of_data:
            self._told_of_data = True
            self._tell(
                f"warning: training has waited for data for more than {self._timeout_s:g} s: the "
                "storage may be away, or other jobs hold the CPUs that read the dataset"
            )


def end_process(sign: Sign) -> bool:
    """SIGKILL for a training process, by a task on its node; False where it is not there."""
    there = NodeAffinitySchedulingStrategy(sign.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_kill)
    ended = task.options(scheduling_strategy=there).remote(sign.pid)
    try:
        return bool(ray.get(ended, timeout=ANSWER_S))
    except (ray.exceptions.RayError, TimeoutError):
        return False  # its node is gone, and it with it


def _kill(pid: int) -> bool:
    try:
        if not is_training_process(psutil.Process(pid).cmdline()):
            return False  # another process has this number now
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True

"""Ending a training early with a checkpoint of its current step: a signal, or its time is up."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
import torch.distributed

from pipelines.pretrain.stall import Phase, Sign

RESERVE_S = 60.0  # of a time limit, at most a tenth of it, for the last checkpoint
POLL_S = 0.5


class StopRequest:
    """On the driver: whether and why the training is to end."""

    def __init__(self, time_limit_s: float | None = None) -> None:
        """The time limit begins now."""
        self.reason: str | None = None
        self._deadline = None
        if time_limit_s is not None:
            self._deadline = time.monotonic() + time_limit_s - min(RESERVE_S, time_limit_s / 10)

    def is_due(self) -> bool:
        """Whether the training is to end now."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        if late and self.reason is None:
            self.reason = "its time limit"
        return self.reason is not None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block the first SIGINT or SIGTERM asks for the end; the second acts as usual.

        Python takes signals in its main thread alone; in another one nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}

        def ask(number: int, frame: Any) -> None:
            self.reason = signal.Signals(number).name
            _restore(before)

        for number in numbers:
            signal.signal(number, ask)
        try:
            yield
        finally:
            _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class StopWatch:
    """On a training process: sends signs of life from a thread, and hears when it is to end."""

    def __init__(self, mailbox: Any, sign: Sign, ranks: int, device: torch.device) -> None:
        """Nothing requested yet; `sign` is the first one."""
        self._mailbox, self._sign, self._ranks, self._device = mailbox, sign, ranks, device
        self._requested, self._ended = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask and tell while the block runs."""
        thread = threading.Thread(target=self._follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=10 * POLL_S)
            self._mailbox.forget.remote(self._sign.rank, self._sign.pid)

    def enter(self, phase: Phase) -> None:
        """The process does something else now; so it moves."""
        self._sign = self._sign._replace(phase=phase, done=self._sign.done + 1)

    def is_requested(self, *, at_point: bool) -> bool:
        """The same on all ranks; several ranks ask each other only at a point of the curves."""
        if self._ranks == 1:
            return self._requested.is_set()
        if not at_point:
            return False
        flag = torch.tensor(float(self._requested.is_set()), device=self._device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def _follow(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                if ray.get(self._mailbox.sign.remote(self._sign)):
                    self._requested.set()
            except ray.exceptions.RayError:
                return  # the driver is gone, and this process goes with it

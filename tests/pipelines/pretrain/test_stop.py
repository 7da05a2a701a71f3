"""Ending early: by a signal, by the time limit, and on all ranks at the same step."""

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from pipelines.pretrain.stall import Sign
from pipelines.pretrain.stop import StopRequest, StopWatch

CPU = torch.device("cpu")
SIGN = Sign(0, "node", 1, "other", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_the_end_and_the_second_acts_as_usual(number: int) -> None:
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        request = StopRequest()
        with request.on_signals():
            assert not request.is_due()
            os.kill(os.getpid(), number)
            assert request.is_due()
            assert request.reason == signal.Signals(number).name
            assert seen == []
            os.kill(os.getpid(), number)
            assert seen == [number]
        os.kill(os.getpid(), number)
        assert seen == [number] * 2
    finally:
        signal.signal(number, before)


def test_beside_the_main_thread_no_handler_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look() -> None:
        with StopRequest().on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(("limit_s", "due_after_s"), [(1000.0, 940.0), (100.0, 90.0)])
def test_a_time_limit_leaves_time_for_the_last_checkpoint(
    limit_s: float, due_after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [5.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    request = StopRequest(limit_s)
    now[0] += due_after_s - 1
    assert not request.is_due()
    now[0] += 2
    assert request.is_due() and request.reason == "its time limit"


def mailbox(answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    return SimpleNamespace(
        # The last answer stays: a busy machine may ask again before it is looked at.
        sign=SimpleNamespace(remote=lambda sign: answers.pop(0) if answers[1:] else answers[0]),
        forget=SimpleNamespace(remote=lambda rank, pid: None),
    )


def test_a_worker_hears_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.pretrain.stop.POLL_S", 0.01)
    watch = StopWatch(mailbox([False, True], monkeypatch), SIGN, 1, CPU)
    with watch.running():
        deadline = time.monotonic() + 30
        while not watch.is_requested(at_point=False):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_several_ranks_stop_together_at_a_point_of_the_curves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_rank = [0.0, 1.0]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag: flag.add_(other_rank.pop(0)))
    watch = StopWatch(None, SIGN, 2, CPU)
    assert not watch.is_requested(at_point=False)  # asks nobody
    assert not watch.is_requested(at_point=True)
    assert watch.is_requested(at_point=True)

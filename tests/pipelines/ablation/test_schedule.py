"""A scheduled start runs once per period, never twice at a time, and catches up once."""

import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines.ablation.schedule import ScheduledStart, once_per_period
from pipelines.errors import UserError
from pipelines.storage import lease

DAY_S = 86400.0


class Clock:
    """A clock that moves only when somebody sleeps or sets it."""

    def __init__(self, days: float) -> None:
        self.now = days * DAY_S

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def start(store: Path, clock: Clock, sweep: Any, period_s: float = DAY_S) -> ScheduledStart:
    return once_per_period(
        sweep, store=str(store), name="nightly", period_s=period_s, clock=clock, sleep=clock.sleep
    )


def test_the_same_tick_twice_starts_one_sweep(tmp_path: Path) -> None:
    sweeps: list[float] = []
    clock = Clock(100.1)

    def sweep() -> bool:
        sweeps.append(clock.now)
        return True

    assert start(tmp_path, clock, sweep).decision == "ran"
    clock.now = 100.9 * DAY_S
    assert start(tmp_path, clock, sweep).decision == "already done"
    clock.now = 101.1 * DAY_S
    assert start(tmp_path, clock, sweep).decision == "ran"
    assert len(sweeps) == 2


def test_after_missed_ticks_there_is_one_catch_up(tmp_path: Path) -> None:
    clock = Clock(100.1)
    start(tmp_path, clock, lambda: True)
    clock.now = 104.1 * DAY_S
    backfilled = [start(tmp_path, clock, lambda: True) for _ in range(4)]  # one job per missed tick
    assert [tick.decision for tick in backfilled] == ["ran"] + ["already done"] * 3
    assert backfilled[0].missed == 3


def test_an_incomplete_sweep_is_tried_again_within_its_period(tmp_path: Path) -> None:
    clock = Clock(100.1)
    assert start(tmp_path, clock, lambda: False).decision == "incomplete"
    assert start(tmp_path, clock, lambda: True).decision == "ran"


def test_a_tick_while_the_last_still_runs_does_not_overlap(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()
    ends: list[ScheduledStart] = []
    options: dict[str, Any] = {"store": str(tmp_path), "name": "nightly", "lease_s": 1.0}

    def long_sweep() -> bool:
        inside.set()
        return go_on.wait(30)

    def first() -> None:
        ends.append(once_per_period(long_sweep, period_s=DAY_S, **options))

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    try:
        second = once_per_period(lambda: pytest.fail("two at a time"), period_s=DAY_S, **options)
        next_second = once_per_period(lambda: pytest.fail("two at a time"), period_s=1.0, **options)
    finally:
        go_on.set()
        thread.join()
    assert (second.decision, next_second.decision) == ("still running", "still running")
    assert ends[0].decision == "ran"


def test_a_killed_sweep_is_taken_over(tmp_path: Path) -> None:
    """SIGKILL leaves a claim behind that nobody renews."""
    clock = Clock(100.1)
    folder = tmp_path / "ablate" / "ticks" / "nightly" / "lease"
    lease.acquire(str(folder), "killed", lease_s=60, now=clock.now)
    assert start(tmp_path, clock, lambda: True).decision == "ran"
    assert 60 <= clock.now - 100.1 * DAY_S < 70


def test_a_crashing_sweep_frees_the_schedule(tmp_path: Path) -> None:
    clock = Clock(100.1)

    def crash() -> bool:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        start(tmp_path, clock, crash)
    assert start(tmp_path, clock, lambda: True).decision == "ran"
    assert clock.now == 100.1 * DAY_S  # without waiting for the lease to end


def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tick is "):
        once_per_period(lambda: True, store=str(tmp_path), name="../x", period_s=DAY_S)


def test_a_schedule_goes_on_when_the_length_of_its_periods_changes(tmp_path: Path) -> None:
    hour_s = DAY_S / 24
    clock = Clock(100.1)

    def decision(period_s: float) -> str:
        return start(tmp_path, clock, lambda: True, period_s).decision

    assert [decision(hour_s), decision(hour_s)] == ["ran", "already done"]
    assert decision(DAY_S) == "already done"  # the sweep of this hour is one of today
    clock.now += DAY_S
    assert [decision(DAY_S), decision(DAY_S)] == ["ran", "already done"]
    assert [decision(hour_s), decision(hour_s)] == ["ran", "already done"]


def test_a_sweep_of_the_future_is_told_and_no_reason_to_wait_for_it(tmp_path: Path) -> None:
    start(tmp_path, Clock(5000.1), lambda: True)  # a clock that was wrong
    with pytest.raises(UserError, match=r"last\.json has the time 1983-09-10 00:00 UTC, which is"):
        start(tmp_path, Clock(100.1), lambda: True)
    behind = start(tmp_path, Clock(4999.9), lambda: True)  # clocks differ a little
    assert behind.decision == "already done"


def test_a_claim_far_into_the_future_is_told_and_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "ablate" / "ticks" / "nightly" / "lease"
    lease.acquire(str(folder), "killed", lease_s=60, now=5000 * DAY_S)
    clock = Clock(100.1)
    with pytest.raises(UserError, match="lease has the time 1983-09-10 00:01 UTC, which is in the"):
        start(tmp_path, clock, lambda: True)
    assert clock.now == 100.1 * DAY_S

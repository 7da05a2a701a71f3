"""A scheduled start: one sweep per period, never two at a time, one catch-up for missed periods.

    STORE/ablate/ticks/NAME/lease/   who runs it now
    STORE/ablate/ticks/NAME/last.json   the newest period whose sweep is complete

Schedulers may fire twice, late, or many times at once after a pause (RayCronJob does): only the
number of the present period counts, so whatever was missed is made up for by one sweep. A sweep
that ended with failures does not finish its period; the next start within it tries again.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipelines import storage
from pipelines.errors import UserError
from pipelines.storage import lease
from pipelines.storage.lease import LeaseBusyError

LEASE_S = 60.0
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Decision = Literal["ran", "incomplete", "already done", "still running", "lost"]


@dataclass(frozen=True, kw_only=True)
class ScheduledStart:
    """What a scheduled start came to."""

    decision: Decision
    period: int
    missed: int = 0
    """Whole periods without a sweep since the last one; the catch-up stands for them."""
    detail: str = ""


def once_per_period(
    sweep: Callable[[], bool],
    *,
    store: str,
    name: str,
    period_s: float,
    lease_s: float = LEASE_S,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> ScheduledStart:
    """Run `sweep` unless this period's is complete or one is under way.

    Args:
        sweep: returns whether everything in it succeeded.
        store: where the schedule is remembered.
        name: of the schedule.
        period_s: seconds between starts; periods are counted from 1970 in UTC.
        lease_s: a sweep whose process died is taken over after this time.
        clock, sleep: replaced in tests.

    Raises:
        UserError: what the schedule remembers lies in the future, so that it would wait for long.
    """
    check_name(name)
    folder = storage.join(storage.absolute(store), "ablate", "ticks", name)
    period = int(clock() // period_s)
    if (last := _last(folder, period_s)) is not None and last >= period:
        if last > period + 1:  # the next period may be a clock that is a little fast
            raise _in_the_future(_last_uri(folder), last * period_s)
        return ScheduledStart(decision="already done", period=period)
    owner = lease.new_owner()
    try:  # a holder that is alive renews within the wait; a dead one is succeeded
        claim = _claim(storage.join(folder, "lease"), owner, lease_s, clock, sleep)
    except LeaseBusyError as busy:
        return ScheduledStart(decision="still running", period=period, detail=f"by {busy.owner}")
    with lease.hold(claim, lease_s=lease_s, clock=clock) as lost:
        last = _last(folder, period_s)  # another start may have finished while we waited
        if last is not None and last >= period:
            return ScheduledStart(decision="already done", period=period)
        missed = 0 if last is None else period - last - 1
        complete = sweep()
        if lost():
            return ScheduledStart(decision="lost", period=period, missed=missed)
        if complete:
            record = {"period": period, "period_s": period_s, "ended": clock(), "missed": missed}
            storage.publish_json(_last_uri(folder), record)
    return ScheduledStart(
        decision="ran" if complete else "incomplete", period=period, missed=missed
    )


def check_name(name: str) -> None:
    """Refuse what cannot be a folder everywhere."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"tick is '{name}'; it must be a name of a to z, 0 to 9 and '-', up to 63 characters, "
            "the same at every start of the schedule, such as nightly"
        )


def _claim(
    uri: str,
    owner: str,
    lease_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> lease.Claim:
    """Claim at once, or when a holder has let a whole lease pass without renewing it.

    Raises:
        LeaseBusyError: the holder renewed, so it is alive.
        UserError: the claim reaches further than any that is made now.
    """
    until: float | None = None
    while True:
        try:
            return lease.acquire(uri, owner, lease_s=lease_s, now=clock())
        except LeaseBusyError as busy:
            if busy.expires > clock() + 2 * lease_s:  # clocks may differ by less tha one
                raise _in_the_future(uri, busy.expires) from None
            until = busy.expires if until is None else until
            if busy.expires > until:
                raise
            sleep(min(1.0, lease_s / 4))


def _last(folder: str, period_s: float) -> int | None:
    """The newest complete period, counted in the present length of periods."""
    if not storage.exists(_last_uri(folder)):
        return None
    found = storage.read_json(_last_uri(folder))
    if found["period_s"] == period_s:
        return int(found["period"])
    return int(found["period"] * found["period_s"] // period_s)


def _last_uri(folder: str) -> str:
    return storage.join(folder, "last.json")


def _in_the_future(uri: str, time_s: float) -> UserError:
    when = f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"
    return UserError(
        f"{uri} has the time {when}, which is in the future: the clock of this machine is wrong, "
        "or that of the one that wrote it was; set this one right, or delete that if no sweep runs"
    )

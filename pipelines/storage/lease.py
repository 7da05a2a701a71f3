"""Single flight: one holder at a time of a name in the store.

A lease is a folder of numbered claims. Claiming the next number is an exclusive create, so
exactly one process wins; a claim ends by its own time unless its holder renews it, and at once
when its holder was a process of the same machine that is gone. A holder that
was presumed dead notices that a higher number exists. Clocks of the machines may differ by less
than `lease_s`. Leases save double work and order changes to what has no compare-and-set; what is
committed stays guarded by exclusive commits.

    000001.json   {owner, expires}: 0 when given back
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipelines import storage
from pipelines.errors import UserError


class LeaseBusyError(Exception):
    """Somebody else holds the lease and is alive."""

    def __init__(self, owner: str, expires: float) -> None:
        """Keep who it is and until when."""
        super().__init__(f"held by {owner}")
        self.owner, self.expires = owner, expires


class LeaseLostError(Exception):
    """The lease was taken over, since this holder did not renew it in time."""


@dataclass(frozen=True)
class Claim:
    """A number that this process holds."""

    uri: str
    number: int
    owner: str


def new_owner() -> str:
    """A name for this holder that a person can trace and no other holder has."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def acquire(uri: str, owner: str, *, lease_s: float, now: float) -> Claim:
    """Claim the lease.

    Raises:
        LeaseBusyError: it is held, or another process was faster.
    """
    number = _newest(uri)
    if number:
        try:
            before = storage.read_json(_claim_uri(uri, number))
        except FileNotFoundError:  # a newer claim has cleaned it up since
            raise LeaseBusyError("a faster process", now + lease_s) from None
        if before["expires"] > now and not is_dead(before["owner"]):
            raise LeaseBusyError(before["owner"], before["expires"])
    claim = Claim(uri, number + 1, owner)
    try:
        _write(claim, now + lease_s, exclusive=True)
    except FileExistsError:
        if not _is_own(claim):
            raise LeaseBusyError("a faster process", now + lease_s) from None
    if _newest(uri) != claim.number:  # the number was free only because it is long past
        storage.remove(_claim_uri(uri, claim.number))
        raise LeaseBusyError("a faster process", now + lease_s)
    for name in _claims(uri):
        if int(name.removesuffix(".json")) < claim.number:
            storage.remove(storage.join(uri, name))
    return claim


def holder(uri: str, *, now: float) -> str | None:
    """Who holds the lease and is alive; None where it is free."""
    number = _newest(uri)
    if not number:
        return None
    try:
        claim = storage.read_json(_claim_uri(uri, number))
    except FileNotFoundError:  # a newer claim has cleaned it up since
        return "a faster process"
    is_alive = claim["expires"] > now and not is_dead(claim["owner"])
    return str(claim["owner"]) if is_alive else None


def renew(claim: Claim, *, lease_s: float, now: float) -> None:
    """Hold a claim for longer.

    Raises:
        LeaseLostError: somebody else holds the lease by now.
    """
    if _newest(claim.uri) != claim.number:
        raise LeaseLostError(claim.uri)
    _write(claim, now + lease_s, exclusive=False)


def release(claim: Claim) -> None:
    """Give a claim back; nothing happens when it was lost."""
    if _newest(claim.uri) == claim.number:
        _write(claim, 0.0, exclusive=False)


def acquire_patiently(
    uri: str,
    owner: str,
    *,
    lease_s: float,
    wait_s: float,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Claim:
    """Claim the lease within `wait_s`.

    Raises:
        LeaseBusyError: it was still held then.
    """
    until = clock() + wait_s
    while True:
        try:
            return acquire(uri, owner, lease_s=lease_s, now=clock())
        except LeaseBusyError:
            if clock() >= until:
                raise
        sleep(min(1.0, lease_s / 10))


@contextmanager
def alone(uri: str, *, lease_s: float, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a lease while the block runs, however long it takes to get it.

    Args:
        uri: of the lease.
        lease_s: seconds after which a holder that does not renew it is presumed dead.
        tell: gets the holder's name once, if somebody else has it.
    """
    owner, told = new_owner(), False
    while True:
        try:
            claim = acquire(uri, owner, lease_s=lease_s, now=time.time())
            break
        except LeaseBusyError as busy:
            if not told and busy.owner:
                tell(busy.owner)
                told = True
        time.sleep(min(1.0, lease_s / 10))
    with hold(claim, lease_s=lease_s):
        yield


def is_dead(owner: str) -> bool:
    """Whether an owner was a process of this machine that has ended; of others nobody knows."""
    host, _, rest = owner.partition("/")
    pid = rest.partition("/")[0]
    return host == socket.gethostname() and pid.isdecimal() and not _exists(int(pid))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def hold(
    claim: Claim, *, lease_s: float, clock: Callable[[], float] = time.time
) -> Iterator[Callable[[], bool]]:
    """Renew a claim from a thread while the block runs.

    The block gets a function that says whether the claim is lost: somebody else has it, or it could
    not be renewed for `lease_s`, so that somebody else may have it.
    """
    stop, taken = threading.Event(), threading.Event()
    renewed = clock()

    def keep() -> None:
        nonlocal renewed
        while not stop.wait(lease_s / 4):
            now = clock()
            try:
                renew(claim, lease_s=lease_s, now=now)
            except LeaseLostError:
                taken.set()
                return
            except Exception:  # storage is away, or refuses: the next renewal may come in time
                continue
            renewed = now

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lambda: taken.is_set() or clock() > renewed + lease_s
    finally:
        stop.set()
        thread.join()
        with suppress(OSError, UserError):  # storage is away, or refuses: its time will be over
            release(claim)


def _is_own(claim: Claim) -> bool:
    """Whether it was written, only the answer was lost, and a client of the storage tried again."""
    try:
        found = storage.read_json(_claim_uri(claim.uri, claim.number))
    except FileNotFoundError:
        return False
    return bool(found["owner"] == claim.owner)


def _newest(uri: str) -> int:
    return max((int(name.removesuffix(".json")) for name in _claims(uri)), default=0)


def _claims(uri: str) -> list[str]:
    return [name for name in storage.children(uri) if not name.startswith(".")]


def _claim_uri(uri: str, number: int) -> str:
    return storage.join(uri, f"{number:06}.json")


def _write(claim: Claim, expires: float, *, exclusive: bool) -> None:
    content = {"owner": claim.owner, "expires": expires}
    storage.publish_json(_claim_uri(claim.uri, claim.number), content, exclusive=exclusive)

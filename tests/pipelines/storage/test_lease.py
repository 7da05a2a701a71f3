"""A lease has one holder at a time, and survives a holder that dies."""

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.errors import UserError
from pipelines.storage import lease
from pipelines.storage.lease import Claim, LeaseBusyError, LeaseLostError

LEASE_S = 10.0


def test_a_second_claim_is_refused_until_the_first_is_given_back(tmp_path: Path) -> None:
    uri = str(tmp_path)
    first = lease.acquire(uri, "first", lease_s=LEASE_S, now=100)
    with pytest.raises(LeaseBusyError, match="first"):
        lease.acquire(uri, "second", lease_s=LEASE_S, now=105)
    lease.release(first)
    assert lease.acquire(uri, "second", lease_s=LEASE_S, now=105).number == first.number + 1


def test_a_dead_holder_is_succeeded_when_its_time_is_over(tmp_path: Path) -> None:
    uri = str(tmp_path)
    dead = lease.acquire(uri, "dead", lease_s=LEASE_S, now=100)
    heir = lease.acquire(uri, "heir", lease_s=LEASE_S, now=110.1)
    with pytest.raises(LeaseLostError):
        lease.renew(dead, lease_s=LEASE_S, now=111)
    lease.release(dead)  # a zombie must not give back what is not its own
    with pytest.raises(LeaseBusyError, match="heir"):
        lease.acquire(uri, "third", lease_s=LEASE_S, now=112)
    lease.renew(heir, lease_s=LEASE_S, now=119)
    with pytest.raises(LeaseBusyError):
        lease.acquire(uri, "third", lease_s=LEASE_S, now=125)


def test_claims_that_are_over_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(1, 4):
        claim = lease.acquire(str(tmp_path), "holder", lease_s=LEASE_S, now=100)
        assert [path.name for path in tmp_path.iterdir()] == [f"{number:06}.json"]
        lease.release(claim)


@pytest.mark.parametrize("round_", range(10))
def test_of_many_claims_at_once_exactly_one_wins(tmp_path: Path, round_: int) -> None:
    uri = str(tmp_path)
    if round_ % 2:  # half of the rounds take over from a dead holder
        lease.acquire(uri, "dead", lease_s=LEASE_S, now=0)
    barrier = threading.Barrier(8)
    won: list[Claim] = []

    def claim(number: int) -> None:
        barrier.wait()
        try:
            won.append(lease.acquire(uri, str(number), lease_s=LEASE_S, now=100))
        except LeaseBusyError:
            return

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_number_long_past_cannot_be_claimed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow process listed the folder before two others came and went."""
    uri = str(tmp_path)
    first = lease.acquire(uri, "first", lease_s=LEASE_S, now=100)
    lease.release(first)
    newest = lease._newest
    listed = iter([first.number])
    holders = []

    def slow(folder: str) -> int:
        before = next(listed, None)
        if before is None:
            return newest(folder)
        monkeypatch.setattr(lease, "_newest", newest)
        second = lease.acquire(uri, "second", lease_s=LEASE_S, now=101)
        lease.release(second)
        holders.append(lease.acquire(uri, "third", lease_s=LEASE_S, now=102))
        monkeypatch.setattr(lease, "_newest", slow)
        storage.publish_json(
            lease._claim_uri(uri, before), {"owner": "first", "expires": 0.0}
        )  # its own file is gone by now: what it had read stays valid
        return before

    monkeypatch.setattr(lease, "_newest", slow)
    with pytest.raises(LeaseBusyError):
        lease.acquire(uri, "slow", lease_s=LEASE_S, now=103)
    lease.renew(holders[0], lease_s=LEASE_S, now=104)


def test_a_held_lease_is_renewed_until_the_block_ends(tmp_path: Path) -> None:
    uri = str(tmp_path)
    claim = lease.acquire_patiently(uri, "holder", lease_s=1.0, wait_s=0)
    with lease.hold(claim, lease_s=1.0) as lost:
        with pytest.raises(LeaseBusyError):
            lease.acquire_patiently(uri, "other", lease_s=1.0, wait_s=1.5)
        assert not lost()
    lease.acquire_patiently(uri, "other", lease_s=1.0, wait_s=0)


@pytest.mark.parametrize("fault", [OSError("no route"), UserError("no credentials")])
def test_a_lease_that_cannot_be_given_back_undoes_no_work_and_hides_no_error(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise fault

    claim = lease.acquire(str(tmp_path), "holder", lease_s=LEASE_S, now=100)
    monkeypatch.setattr(storage, "publish_json", refused)
    with lease.hold(claim, lease_s=LEASE_S, clock=lambda: 100):
        done = True
    assert done
    with pytest.raises(ZeroDivisionError), lease.hold(claim, lease_s=LEASE_S, clock=lambda: 100):
        raise ZeroDivisionError


@pytest.mark.parametrize("fault", [OSError("no route"), UserError("no credentials")])
def test_a_lease_that_cannot_be_renewed_is_lost_when_its_time_is_over(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    tries = threading.Semaphore(0)

    def refused(*arguments: object, **options: object) -> None:
        tries.release()
        raise fault

    claim = lease.acquire(str(tmp_path), "holder", lease_s=0.1, now=now)
    renew = lease.renew
    monkeypatch.setattr(lease, "renew", refused)
    with lease.hold(claim, lease_s=0.1, clock=lambda: now) as lost:
        for _ in range(2):  # the fault does not end the thread
            assert tries.acquire(timeout=30)
        assert not lost()
        now += 0.11
        assert lost()

        def renewed(*arguments: object, **options: object) -> None:
            renew(claim, lease_s=0.1, now=now)
            tries.release()

        monkeypatch.setattr(lease, "renew", renewed)
        while tries.acquire(blocking=False):
            pass
        for _ in range(2):
            assert tries.acquire(timeout=30)
        assert not lost()  # nobody had taken it


def test_a_lease_that_another_holder_took_is_lost(tmp_path: Path) -> None:
    claim = lease.acquire(str(tmp_path), "holder", lease_s=0.1, now=100)
    with lease.hold(claim, lease_s=0.1, clock=lambda: 100) as lost:
        lease.acquire(str(tmp_path), "heir", lease_s=0.1, now=101)
        deadline = time.monotonic() + 30
        while not lost():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_of_this_machine_that_is_gone_is_succeeded_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner = f"{socket.gethostname()}/{gone.pid}/abc"
    lease.acquire(str(tmp_path), owner, lease_s=LEASE_S, now=100)
    assert lease.acquire(str(tmp_path), "heir", lease_s=LEASE_S, now=101).number == 2


@pytest.mark.parametrize("owner", ["elsewhere/1/abc", "plain", f"{socket.gethostname()}/x/y"])
def test_of_a_process_elsewhere_nobody_knows_whether_it_lives(owner: str) -> None:
    assert not lease.is_dead(owner)
    assert not lease.is_dead(lease.new_owner())


def test_who_has_to_wait_is_told_once_for_whom(tmp_path: Path) -> None:
    held = lease.acquire(str(tmp_path), "first", lease_s=1.0, now=time.time())
    said: list[str] = []

    def tell(owner: str) -> None:
        said.append(owner)
        lease.release(held)

    with lease.alone(str(tmp_path), lease_s=1.0, tell=tell):
        assert said == ["first"]

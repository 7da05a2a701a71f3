"""Jobs of one cluster never hold so much that none of them can go on."""

import threading

from conftest import CPUS
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.runtime import reservation
from pipelines.runtime.reservation import Claim, reserve


def test_who_does_not_fit_waits_with_one_line_until_the_others_end(ray_cluster: None) -> None:
    said: list[str] = []
    order: list[str] = []
    first_ends, second_came = threading.Event(), threading.Event()

    def first() -> None:
        with reserve(cpus=CPUS - 1, gpus=0, tell=said.append) as granted:
            order.append(f"first {granted.cpus}")
            second_came.set()
            assert first_ends.wait(120)
            order.append("first ends")

    def second() -> None:
        assert second_came.wait(120)
        with reserve(cpus=2, gpus=0, tell=tell) as granted:
            order.append(f"second {granted.cpus}")

    def tell(text: str) -> None:
        said.append(text)
        first_ends.set()

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert order == [f"first {CPUS - 1}", "first ends", "second 2"]
    (line,) = said
    assert line.startswith("waiting for 2 CPUs, of which 1 are free: 1 job of")
    assert reservation.claims() == []


def test_what_other_programs_hold_is_left_to_them(ray_cluster: None) -> None:
    others = placement_group([{"CPU": CPUS - 2}])
    assert others.wait(60)
    said: list[str] = []
    with reserve(cpus=CPUS, gpus=0, tell=said.append) as granted:
        assert granted.cpus == 2
    remove_placement_group(others)
    assert said == []


def test_a_claim_is_its_name() -> None:
    claim = Claim(1_700_000_000.125, "abcd", 3, 1)
    at, key, cpus, gpus = str(claim).split()
    assert Claim(float(at), key, int(cpus), int(gpus)) == claim
    assert claim < Claim(1_700_000_000.126, "aaaa", 1, 0)

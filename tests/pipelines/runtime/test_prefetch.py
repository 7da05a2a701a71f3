"""A thread that takes items before they are asked for."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.runtime.prefetch import prefetch


def test_a_thread_takes_the_items_in_order_and_only_so_far_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    found = []
    for number in prefetch(items(), 2):
        time.sleep(0.01)
        # two wait, one more is in the thread's hand and one in ours
        assert len(taken) <= number + 4
        found.append(number)
    assert found == list(range(20))


def test_what_a_thread_meets_is_raised_where_its_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the store is away")

    taken = prefetch(items(), 2)
    assert next(taken) == 1
    with pytest.raises(OSError, match="the store is away"):
        next(taken)


def test_a_thread_ends_when_nobody_wants_its_items_any_more() -> None:
    ended = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.set()

    taken = prefetch(items(), 1)
    assert next(taken) == 0
    taken.close()
    assert ended.wait(5)

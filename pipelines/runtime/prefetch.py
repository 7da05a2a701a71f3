"""Taking the items of an iterator in a thread, before they are asked for."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End(Generic[T]):
    """What the thread says last."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterator[T], count: int) -> Iterator[T]:
    """The items, taken by a thread that is up to `count` ahead; what it raises is raised here."""
    ready: queue.Queue[T | _End[T]] = queue.Queue(count)
    abandoned = threading.Event()

    def put(item: T | _End[T]) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def take() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as raised:
            error = raised
        put(_End(error))

    threading.Thread(target=take, name="ahead", daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        abandoned.set()

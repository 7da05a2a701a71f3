"""Requests that arrive together are worked on together."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """A queue in front of a function of many items, which runs in a thread, one call at a time.

    What waits while a call runs is the next batch: alone, a request waits for nothing, and under
    load batches grow by themselves.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], size: int) -> None:
        """`work` gets at most `size` items and returns one result for each."""
        self._work, self._size = work, size
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None
        self.sizes: list[int] = []
        """Of the batches since the last look at this list."""

    async def do(self, item: Item) -> Result:
        """The result for one item; cancelled, it is left out unless it is being worked on."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting = [pair for pair in self._waiting if not pair[1].done()]
                batch, self._waiting = waiting[: self._size], waiting[self._size :]
                if batch:
                    await self._answer(batch)
        finally:
            self._running = None

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self.sizes.append(len(batch))
        try:
            results = await asyncio.to_thread(self._work, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:  # the others are not to blame
                for pair in batch:
                    await self._answer([pair])
                return
            if not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)

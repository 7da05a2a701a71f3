"""A mailbox from workers to the driver."""

import time
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Failure(NamedTuple):
    """Why a worker gave up, in words for the user."""

    reason: str
    final: bool
    """Whether it would end the same way if it were tried again."""


class Mailbox:
    """Holds what the workers posted until the driver takes it."""

    def __init__(self) -> None:
        """Start empty."""
        self._posted: list[object] = []
        self._failure: Failure | None = None
        self._stop_requested = False
        self._signs: dict[int, tuple[Any, float, float]] = {}

    def sign(self, sign: Any) -> bool:
        """Take a sign of life (with `rank` and `pid`); whether the workers are to end."""
        now = time.monotonic()
        before = self._signs.get(sign.rank)
        moved = before[2] if before is not None and before[0] == sign else now
        self._signs[sign.rank] = (sign, now, moved)
        return self._stop_requested

    def signs(self) -> list[tuple[Any, float, float]]:
        """The last of each rank, seconds since it came, and since it was another one."""
        now = time.monotonic()
        return [(sign, now - heard, now - moved) for sign, heard, moved in self._signs.values()]

    def forget(self, rank: int, pid: int) -> None:
        """A worker has ended; the next one of its rank stays."""
        if rank in self._signs and self._signs[rank][0].pid == pid:
            del self._signs[rank]

    def request_stop(self) -> None:
        """Ask the workers to save what they have and end."""
        self._stop_requested = True

    def post(self, message: object) -> None:
        """Add a message."""
        self._posted.append(message)

    def fail(self, failure: Failure) -> None:
        """Note why a worker gives up; what is final stays."""
        if self._failure is None or not self._failure.final:
            self._failure = failure

    def failure(self) -> Failure | None:
        """The last one."""
        return self._failure

    def drain(self) -> list[object]:
        """All messages since the last call, in order."""
        posted, self._posted = self._posted, []
        return posted


def create_mailbox(**options: Any) -> Any:
    """The handle of a new mailbox actor, beside the driver: no other node's loss takes it away.

    Where its process is lost (a machine short of memory ends one), an empty one takes its place: a
    training hands its history over again at the end.

    Args:
        options: of the actor, such as its name.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    settings = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(scheduling_strategy=here, **settings)(Mailbox)
    return actor.options(**options).remote()

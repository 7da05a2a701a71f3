"""A mailbox from workers to the driver."""

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

    def request_stop(self) -> None:
        """Ask the workers to save what they have and end."""
        self._stop_requested = True

    def is_stop_requested(self) -> bool:
        """Whether the workers are to end."""
        return self._stop_requested

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

    Args:
        options: of the actor, such as its name.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
    return actor.options(**options).remote()

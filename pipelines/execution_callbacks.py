"""Callbacks that mend three habits of Ray Data's scheduler; both were measured with Ray 2.60."""

import time
from typing import Any

from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback


class Prompt(ExecutionCallback):  # type: ignore[misc]
    """The whole cluster from the first moment, instead of one task at a time for 1 to 2 s.

    The scheduler asks once a second what it may use, without waiting for the answer, and takes the
    missing one for "nothing". So it asks again at each step here, until it has been answered.
    """

    PATIENCE_S = 5.0  # "nothing" may also be the answer, where training holds every CPU

    def before_execution_starts(self, executor: Any) -> None:
        """The time from which the answer is awaited."""
        self._end = time.monotonic() + self.PATIENCE_S

    def on_execution_step(self, executor: Any) -> None:
        """Let the next look at the limits be a fresh one."""
        manager = executor._resource_manager
        if time.monotonic() < self._end and manager.get_global_limits().is_zero():
            manager._global_limits_last_update_time = 0.0


class Attentive(ExecutionCallback):  # type: ignore[misc]
    """The next task follows the last one within 0.03 s; Ray looks every 0.1 s.

    Worth it where tasks take a fraction of a second. Each look costs the driver some 3 ms.
    """

    WAIT_S = 0.03

    def before_execution_starts(self, executor: Any) -> None:
        """Wait less in this process."""
        self._rays_own = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = self.WAIT_S

    def after_execution_succeeds(self, executor: Any) -> None:
        """Wait as before."""
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = self._rays_own

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Wait as before."""
        self.after_execution_succeeds(executor)


class Paced(ExecutionCallback):  # type: ignore[misc]
    """A short rest after each turn of the scheduler.

    While the training is slower than the data, finished blocks wait in their tasks; Ray's
    scheduler then finds them ready at every look and turns without a pause, which costs more than
    half a core (on 2 cores: 61 %, with the rest 6 %).
    """

    REST_S = 0.02  # far below the time of a batch; a turn handles all blocks that are ready

    def on_execution_step(self, executor: Any) -> None:
        """Rest."""
        time.sleep(self.REST_S)

"""Callbacks that mend two habits of Ray Data's scheduler; both were measured with Ray 2.60."""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback


class Prompt(ExecutionCallback):  # type: ignore[misc]
    """The whole cluster from the first moment, instead of one task at a time for 1 to 2 s.

    The scheduler asks once a second what it may use, without waiting for the answer, and takes the
    missing one for "nothing". So the answer is awaited here for a moment, since the next step may
    take a tenth of a second, and after that asked for at each step.
    """

    WAIT_S = 0.3  # for the answer, which takes 0.01 to 0.1 s once there is a coordinator
    PATIENCE_S = 5.0  # "nothing" may also be the answer, where training holds every CPU
    POLL_S = 0.005

    def before_execution_starts(self, executor: Any) -> None:
        """The time from which the answer is awaited."""
        self._began = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Let the next look at the limits be a fresh one."""
        manager = executor._resource_manager
        while manager.get_global_limits().is_zero():
            waited = time.monotonic() - self._began
            if waited < self.PATIENCE_S:
                manager._global_limits_last_update_time = 0.0
            if waited >= self.WAIT_S:
                return
            time.sleep(self.POLL_S)


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

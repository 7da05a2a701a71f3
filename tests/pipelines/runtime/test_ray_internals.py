"""The callbacks of Ray Data's scheduler: what they change, and that Ray still has it."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.data import ExecutionResources

from pipelines.runtime.ray_internals import RefreshLimits


class Manager:
    """Limits as Ray's resource manager keeps them: an answer that is looked at once a second."""

    def __init__(self, limits: ExecutionResources) -> None:
        """With these limits, looked at just now."""
        self.limits, self._global_limits_last_update_time = limits, time.time()

    def get_global_limits(self) -> ExecutionResources:
        """As Ray's."""
        return self.limits


def fresh_look(limits: ExecutionResources, patience_s: float) -> bool:
    """Whether one step makes the scheduler ask again."""
    executor = SimpleNamespace(_resource_manager=Manager(limits))
    prompt = RefreshLimits()
    prompt.PATIENCE_S = patience_s
    prompt.before_execution_starts(executor)
    prompt.on_execution_step(executor)
    return executor._resource_manager._global_limits_last_update_time == 0.0


@pytest.mark.parametrize(
    ("limits", "patience_s", "requested"),
    [
        (ExecutionResources.zero(), 60.0, True),
        (ExecutionResources(cpu=2), 60.0, False),
        (ExecutionResources.zero(), -1.0, False),
    ],
)
def test_prompt_asks_until_answered(
    limits: ExecutionResources, patience_s: float, requested: bool
) -> None:
    """Nothing known: asked again; known, or waited for too long: left alone."""
    assert fresh_look(limits, patience_s) is requested


def test_ray_knows_its_cluster_soon(ray_cluster: None) -> None:
    """The real scheduler gets its answer within a few steps, not a second later."""
    known: list[bool] = []

    class Watching(RefreshLimits):
        """Notes at each step whether the scheduler knows what it may use."""

        def on_execution_step(self, executor: Any) -> None:
            """Note it."""
            super().on_execution_step(executor)
            known.append(not executor._resource_manager._global_limits.is_zero())

    for _ in range(2):  # the first time, the actor that answers has to start
        known.clear()
        work = ray.data.range(4, override_num_blocks=4).map(lambda row: (time.sleep(0.3), row)[1])
        work.context.custom_execution_callback_classes = [Watching]
        list(work.iter_rows())
    assert known.index(True) <= 4

"""What we change in Ray, and that Ray still has it."""

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import services
from ray.data import ExecutionResources

from pipelines.runtime import ray_internals
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


@pytest.mark.parametrize(("lives", "found"), [(True, {"labels": {}}), (False, None)])
def test_a_slow_node_is_waited_for_while_its_process_lives(
    lives: bool, found: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, told = iter(range(4)), list[str]()

    def get_node(address: str, node_id: str) -> Any:
        if next(looks) < 3:
            raise RuntimeError(f"no node {node_id} at {address}")
        return found

    for name, value in (("LOOK_S", 0.0), ("BUSY_S", 0.0), ("_has_raylet", lambda: lives)):
        monkeypatch.setattr(ray_internals, name, value)
    monkeypatch.setattr(services, "get_node", get_node)
    with ray_internals.patient_start(told.append):
        if lives:
            assert services.get_node("a", "b") == found
        else:
            with pytest.raises(RuntimeError, match="no node b at a"):
                services.get_node("a", "b")
    assert services.get_node is get_node
    assert len(told) == lives


def test_training_processes_are_counted_by_their_title() -> None:
    before = ray_internals.count_training_processes()
    sleeping = ["ray::RayTrainWorker", "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeping, executable=sys.executable) as process:
        try:
            assert ray_internals.count_training_processes() == before + 1
        finally:
            process.kill()


def test_ray_asks_for_its_node_where_we_wait_for_it() -> None:
    """The line of `ray._private.node` that `patient_start` changes: an upgrade may move it."""
    from ray._private.node import Node

    assert "get_node" in Node.__init__.__code__.co_names


def test_an_address_has_an_interface_or_none() -> None:
    name = ray_internals.interface_of("127.0.0.1")
    assert name is not None and name.startswith("lo")
    assert ray_internals.interface_of("203.0.113.9") is None  # for documents, RFC 5737

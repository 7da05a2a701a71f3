"""All private interfaces of Ray, measured with Ray 2.60: an upgrade is one look at this file.

Callbacks that fix two habits of Ray Data's scheduler; a dataset of numbers; a trainer that ends
when it should; a start that a busy machine may take its time for; what Ray knows of this machine.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray._private import services
from ray._private import utils as ray_utils
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces.ref_bundle import BlockSlice
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import InputData
from ray.data._internal.stats import DatasetStats


def limit_of_cpus() -> int:
    """CPUs of this machine, or of this container where it has a limit."""
    return int(ray_utils.get_num_cpus(override_docker_cpu_warning=True))


def shared_memory_bytes() -> int:
    """Size of /dev/shm."""
    return int(ray_utils.get_shared_memory_bytes())


def available_memory_bytes() -> int:
    """Memory that is left on this machine, or in this container."""
    return int(ray_utils.estimate_available_memory())


START_LIMITS = {  # settings of Ray's own processes, which end themselves after 30 s or so
    "RAY_agent_register_timeout_ms": "180000",  # a raylet waits for the Python agents beside it
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "120",
}
START_S = 240.0
BUSY_S = 20.0  # an idle machine needs about 5
LOOK_S = 0.5


@contextmanager
def patient_start(tell: Callable[[str], None]) -> Iterator[None]:
    """Let `ray.init` wait for its node for START_S, as long as the node's process lives.

    Ray itself gives up after 30 s, a number in its code (node.py), which a busy machine exceeds.

    Args:
        tell: gets one line when the start takes long.
    """
    began = time.monotonic()
    told = False

    def get_node(gcs_address: str, node_id: str) -> Any:
        nonlocal told
        while True:
            try:
                return real(gcs_address, node_id)
            except RuntimeError:  # it has not registered yet
                waited = time.monotonic() - began
                if waited > START_S or not _has_raylet():
                    raise
            if waited > BUSY_S and not told:
                tell(f"Ray is still starting after {waited:.0f} s: this machine is busy")
                told = True
            time.sleep(LOOK_S)

    real, services.get_node = services.get_node, get_node
    try:
        yield
    finally:
        services.get_node = real


def _has_raylet() -> bool:
    """Whether the process of a node that this process started is alive."""
    for child in psutil.Process().children():
        try:
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def is_training_process(command_line: Sequence[str] | None) -> bool:
    """Whether a process is one of a training, by the title Ray gives it."""
    return bool(command_line and command_line[0].startswith("ray::RayTrainWorker"))


def count_training_processes() -> int:
    """Training processes of all jobs and clusters on this machine."""
    found = psutil.process_iter(["cmdline"])
    return sum(is_training_process(each.info["cmdline"]) for each in found)


def has_dashboard() -> bool:
    """Whether the cluster we are in answers questions about its state."""
    return bool(ray._private.worker.get_dashboard_url())


class RefreshLimits(ExecutionCallback):  # type: ignore[misc]
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


class RestBetweenTurns(ExecutionCallback):  # type: ignore[misc]
    """A short rest after each turn of the scheduler.

    While the training is slower than the data, finished blocks wait in their tasks; Ray's
    scheduler then finds them ready at every look and turns without a pause, which costs more than
    half a core (on 2 cores: 61 %, with the rest 6 %).
    """

    REST_S = 0.02  # far below the time of a batch; a turn handles all blocks that are ready

    def on_execution_step(self, executor: Any) -> None:
        """Rest."""
        time.sleep(self.REST_S)


COLUMN = "number"


def number_dataset(first: int, last: int) -> ray.data.Dataset:
    """A dataset of first .. last - 1, int64 in column COLUMN, in blocks of one row each."""
    table = pa.table({COLUMN: pa.array(range(first, last), pa.int64())})
    whole = ray.data.from_arrow(table)
    (bundle,) = whole._logical_plan.dag.input_data
    rows = [replace(bundle, slices=(BlockSlice(row, row + 1),)) for row in range(len(table))]
    plan = LogicalPlan(InputData(rows), whole.context)
    return ray.data.Dataset(
        plan, whole.context, DatasetStats(metadata={"numbers": []}, parent=None)
    )


def without_idle_cleaner(callbacks: list[Any]) -> list[Any]:
    """The callbacks of Ray Train, without its cleaner of placement groups where it has no work.

    It asks the dashboard whether the controller still lives.
    """
    # Here, since it imports torch, which data tasks do without.
    from ray.train.v2._internal.callbacks import placement_group_callback

    if has_dashboard():
        return callbacks
    cleaner = placement_group_callback.PlacementGroupCleanerCallback
    return [each for each in callbacks if not isinstance(each, cleaner)]


def torch_config(timeout_s: int) -> Any:
    """Ray Train's process group, whose members find each other on every network.

    Gloo takes the address that a machine's own name stands for, which Debian sets to 127.0.1.1: no
    other machine reaches that. So workers on several machines talk at the address by which Ray
    knows their machine, unless GLOO_SOCKET_IFNAME names another interface.
    """
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class Backend(_TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_use_interface_of_node)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Config(timeout_s=timeout_s)


def _use_interface_of_node() -> None:
    context = ray.train.get_context()
    if context.get_local_world_size() < context.get_world_size():
        name = interface_of(ray.util.get_node_ip_address())
        if name is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the address."""
    for name, held in psutil.net_if_addrs().items():
        if any(each.address == address for each in held):
            return str(name)
    return None


def elastic_policy(scaling: Any, sizes: Sequence[int]) -> Any:
    """The elastic policy of Ray Train, with group sizes that may be; rising.

    On CPUs it leaves one for the tasks that read data: Ray's own policy fills every one with a
    worker, and then no batch ever comes.
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

    class Policy(ElasticScalingPolicy):  # type: ignore[misc]
        def _count_possible_workers(self, reserved_resources: Any) -> int:
            room = super()._count_possible_workers(reserved_resources)
            if not self.scaling_config.use_gpu:
                room = min(room, int(ray.cluster_resources().get("CPU", 0)) - 1)
            return max((size for size in sizes if size <= room), default=0)

    return Policy(scaling)

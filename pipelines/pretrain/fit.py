"""The call of Ray Train: its settings, its failures as one message."""

import math
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines import storage
from pipelines.data import stream
from pipelines.errors import UserError
from pipelines.pretrain import worker
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.task import Task
from pipelines.pretrain.workers import Workers
from pipelines.runtime import ray_internals
from pipelines.runtime.cluster import Resources
from pipelines.runtime.mailbox import Failure

COLLECTIVE_TIMEOUT_S = 300  # at least; who hangs is found and ended before, by `StallWatch`
RESIZE_AFTER_S = 60.0  # a group is that old before it takes a new size


def scaling_config(
    config: PretrainConfig, resources: Resources, reserved_cpus: int | None = None
) -> ScalingConfig:
    """One GPU per worker where there are GPUs; on CPUs one core stays free for the data tasks.

    Args:
        config: the training.
        resources: of the cluster.
        reserved_cpus: what this job may keep of its CPUs; None: all.
    """
    workers = config.workers.fewest
    if config.workers.is_elastic:
        return _elastic_scaling(config.workers, resources)
    if resources.gpus:
        if workers > resources.gpus:
            raise UserError(
                f"num_workers is {workers}; the cluster has {resources.gpus} GPUs, and each worker "
                f"takes one: use --num-workers {resources.gpus} or fewer"
            )
        return ScalingConfig(num_workers=workers, use_gpu=True)
    if workers > resources.cpus:
        raise UserError(
            f"num_workers is {workers}; the cluster has {resources.cpus} CPUs and no GPU: use "
            f"--num-workers {resources.cpus} or fewer"
        )
    cpus = resources.cpus if reserved_cpus is None else reserved_cpus
    share = min(1.0, (cpus - 1) / workers)
    # One byte of memory, since Ray refuses to place what takes nothing.
    return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": share, "memory": 1})


def _elastic_scaling(workers: Workers, resources: Resources) -> ScalingConfig:
    """A whole GPU or CPU for each worker, since a node has as many workers as it has of them."""
    kind, there = ("GPUs", resources.gpus) if resources.gpus else ("CPUs", resources.cpus - 1)
    beside = "" if resources.gpus else ", beside one that reads the data"
    if workers.fewest > there:
        raise UserError(
            f"num_workers is {workers.fewest}:{workers.most}; the cluster has {there} {kind} for "
            f"them{beside}: use --num-workers {max(1, there)}:{workers.most}"
        )
    return ScalingConfig(
        num_workers=tuple(workers),
        use_gpu=resources.gpus > 0,
        resources_per_worker=None if resources.gpus else {"CPU": 1, "memory": 1},
        elastic_resize_monitor_interval_s=RESIZE_AFTER_S,
    )


def fit_or_raise(config: PretrainConfig, task: Task, scaling: ScalingConfig, mailbox: Any) -> None:
    """Train; a failure whose reason lies outside the program becomes one message."""
    try:
        _fit(config, task, scaling, mailbox)
    except ray.train.TrainingFailedError:
        failure: Failure | None = ray.get(mailbox.failure.remote())
        if failure is None:
            raise
    else:
        failure = ray.get(mailbox.failure.remote())
        if failure is None or not failure.final:
            return
    raise UserError(
        f"training stopped: {failure.reason}. Once that is fixed, rerun the same "
        "command, and it resumes from the last checkpoint"
    )


def _fit(config: PretrainConfig, task: Task, scaling: ScalingConfig, mailbox: Any) -> None:
    filesystem, path = storage.arrow_filesystem(storage.join(task.stage_uri, "ray"))
    trainer = _Trainer(
        worker.train,
        sizes=config.workers.sizes(config.batch_size // config.accumulate),
        train_loop_config={"task": task, "mailbox": mailbox},
        scaling_config=scaling,
        run_config=RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
        torch_config=ray_internals.torch_config(
            max(COLLECTIVE_TIMEOUT_S, math.ceil(2 * config.stall_timeout_s))
        ),
        datasets={"train": lambda: ray_internals.number_dataset(0, 1)},  # see _Shares
        dataset_config=_Shares(task, mailbox),
    )
    trainer.fit()


class _Shares(DataConfig):  # type: ignore[misc]
    """The stream from the newest checkpoint on, cut for the workers that there are."""

    def __init__(self, task: Task, mailbox: Any) -> None:
        super().__init__(execution_options=stream.execution_options())
        self._task, self._mailbox = task, mailbox

    def configure(self, datasets: Any, world_size: int, *args: Any, **more: Any) -> Any:
        """Called at every start of a group."""
        task = self._task.for_workers(world_size)
        made = {"train": worker.training_stream(task, self._mailbox)}
        return super().configure(made, world_size, *args, **more)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ends when it should, and has one of the sizes that share a batch out equally."""

    def __init__(self, *args: Any, sizes: Sequence[int], **more: Any) -> None:
        super().__init__(*args, **more)
        self._sizes = sizes

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            policy = ray_internals.elastic_policy(self.scaling_config, self._sizes)
            settings["scaling_policy"] = policy
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to Python: Ray's handler ends the process with code 1 and no word."""

    def _create_default_callbacks(self) -> list[Any]:
        """Do not wait 12 s at the end for a dashboard that is not there.

        Ray's cleaner of placement groups asks the dashboard whether the controller still lives. A
        cluster without one is ours alone and ends with this process, so nothing is to be cleaned.
        """
        return ray_internals.without_idle_cleaner(super()._create_default_callbacks())

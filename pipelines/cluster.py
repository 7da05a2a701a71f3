"""Joining a Ray cluster, or starting one on this machine, without Ray's chatter."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import ray

LOCAL_OBJECT_STORE_BYTES = 1 << 30  # the stream keeps a few batches in flight, not the dataset
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray._private", "ray.serve")


class Resources(NamedTuple):
    """What the whole cluster has."""

    cpus: int
    gpus: int


@contextmanager
def connected() -> Iterator[Resources]:
    """Join the cluster of RAY_ADDRESS (as in a submitted job), or start one here for the block."""
    if ray.is_initialized():
        yield resources()
        return
    quieten()
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        available = psutil.virtual_memory().available
        # Not whatever cluster happens to run on this machine: RAY_ADDRESS=auto asks for that.
        options["address"] = "local"
        options["include_dashboard"] = False
        options["object_store_memory"] = min(LOCAL_OBJECT_STORE_BYTES, available // 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        ray.init(**options)
    try:
        yield resources()
    finally:
        ray.shutdown()


def resources() -> Resources:
    """CPUs and GPUs of the cluster we are in."""
    total = ray.cluster_resources()
    return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)))


def has_dashboard() -> bool:
    """Whether the cluster we are in answers questions about its state."""
    return bool(ray._private.worker.get_dashboard_url())


def quieten() -> None:
    """Only Ray's errors are shown; what our own stages warn of goes through their reports."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in QUIET_LOGGERS:  # last, because importing ray.data sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)

"""Joining a Ray cluster, or starting one on this machine, without Ray's chatter."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray._private import utils as ray_utils

from pipelines.errors import UserError, first_line

# The stream keeps a few batches per core in flight, not the dataset.
OBJECT_STORE_BYTES, OBJECT_STORE_BYTES_PER_CPU = 1 << 30, 1 << 29
ANSWER_S = 10.0
QUIET_LOGGERS = ("ray", "ray.train", "ray.tune", "ray._private", "ray.serve")


class Resources(NamedTuple):
    """What the whole cluster has."""

    cpus: int
    gpus: int


@contextmanager
def connect() -> Iterator[Resources]:
    """Join the cluster of RAY_ADDRESS (as in a submitted job), or start one here for the block.

    Raises:
        UserError: it does not answer, or does not start.
    """
    if ray.is_initialized():
        yield resources()
        return
    silence_logging()
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address:  # an environment file may set it to nothing
        _require_answer(address)
    else:
        # Not whatever cluster happens to run on this machine: RAY_ADDRESS=auto asks for that.
        options["address"] = "local"
        options["include_dashboard"] = False
        options["object_store_memory"] = _object_store_bytes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises it bare for a node that does not start
            what = f"joining the cluster at {address}" if address else "starting Ray here"
            reason = first_line(error)
            raise UserError(
                f"{what} failed: {reason} Look whether the machine is overloaded, "
                "whether RAY_AUTH_TOKEN_PATH holds this cluster's token, and into "
                "/tmp/ray/session_latest/logs"
            ) from error
    try:
        with _ending_on_sigterm():
            yield resources()
    finally:
        ray.shutdown()


def node_cpus() -> int:
    """CPUs of this machine, or of this container where it has a limit."""
    return int(ray_utils.get_num_cpus(override_docker_cpu_warning=True))


def _object_store_bytes() -> int:
    """Room for blocks in flight on this machine, or within the limits of this container."""
    wanted: int = max(OBJECT_STORE_BYTES, node_cpus() * OBJECT_STORE_BYTES_PER_CPU)
    if sys.platform == "linux":  # for what does not fit there, Ray takes a file on the disk
        wanted = min(wanted, max(OBJECT_STORE_BYTES, ray_utils.get_shared_memory_bytes()))
    return min(wanted, int(ray_utils.estimate_available_memory()) // 5)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM, from `ray job stop`, Kubernetes or systemd, ends a job as Ctrl-C does.

    Ray's own handler prints a stack and aborts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_answer(address: str) -> None:
    """Look whether anybody listens; Ray itself tries for more than five minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if found is None:
        return  # such as "auto", which Ray answers at once
    try:
        socket.create_connection((found[1], int(found[2])), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS is '{address}', where no cluster answers ({error}); give the address "
            "that `ray start --head` printed, or unset RAY_ADDRESS to start a cluster here"
        ) from None


def resources() -> Resources:
    """CPUs and GPUs of the cluster we are in."""
    total = ray.cluster_resources()
    return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)))


def has_dashboard() -> bool:
    """Whether the cluster we are in answers questions about its state."""
    return bool(ray._private.worker.get_dashboard_url())


def silence_logging() -> None:
    """Only Ray's errors are shown; what our own stages warn of goes through their reports."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in QUIET_LOGGERS:  # last, because importing ray.data sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    # What fails in a task is raised here too, and told once, in our words where it is no bug.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)

"""Joining a Ray cluster, or starting one on this machine, without Ray's chatter."""

import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import ray

from pipelines.errors import UserError, first_line
from pipelines.runtime import environment, ray_internals

# The stream keeps a few batches per core in flight, not the dataset.
OBJECT_STORE_BYTES, OBJECT_STORE_BYTES_PER_CPU = 1 << 30, 1 << 29
ANSWER_S = 10.0
QUIET_LOGGERS = ("ray", "ray.train", "ray.tune", "ray._private", "ray.serve")


class Resources(NamedTuple):
    """What the whole cluster has."""

    cpus: int
    gpus: int


_shared: list[ExitStack] = []
"""That of the outermost `connect_once` of this process."""


@contextmanager
def connect_once() -> Iterator[None]:
    """The first `connect` inside the block, if there is one, lasts until the end of the block."""
    with ExitStack() as held:
        _shared.append(held)
        try:
            yield
        finally:
            _shared.remove(held)


@contextmanager
def connect() -> Iterator[Resources]:
    """Join the cluster of RAY_ADDRESS (as in a submitted job), or start one here for the block.

    Raises:
        UserError: it does not answer, or does not start.
    """
    if ray.is_initialized():
        yield resources()
    elif _shared:
        yield _shared[0].enter_context(_connect())
    else:
        with _connect() as found:
            yield found


@contextmanager
def _connect() -> Iterator[Resources]:
    silence_logging()
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = environment.ray_address()
    environment.tell_hidden_gpus()
    if address:
        _require_answer(address)
    else:
        environment.require_temporary_folder()
        environment.ensure_token()
        # Ray gives its workers the lowest priority, for the sake of servers beside them. They get
        # this process's, so that a job started with `nice` stays behind whole.
        os.environ.setdefault("RAY_worker_niceness", str(os.nice(0)))
        for name, value in ray_internals.START_LIMITS.items():
            os.environ.setdefault(name, value)
        # Not whatever cluster happens to run on this machine: RAY_ADDRESS=auto asks for that.
        options["address"] = "local"
        options["include_dashboard"] = False
        options["object_store_memory"] = _object_store_bytes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        try:
            with ray_internals.patient_start(environment.tell_once):
                ray.init(**options)
        except Exception as error:  # Ray raises it bare for a node that does not start
            what = f"joining the cluster at {address}" if address else "starting Ray here"
            reason = first_line(error)
            home = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            raise UserError(
                f"{what} failed: {reason} Look whether the machine is overloaded, "
                "whether RAY_AUTH_TOKEN_PATH holds this cluster's token, and into "
                f"{home}/ray/session_latest/logs"
            ) from error
    try:
        with _ending_on_sigterm():
            yield resources()
    finally:
        ray.shutdown()


def node_cpus() -> int:
    """CPUs that this process may use: of the machine, or the limit of its container or scheduler.

    Inside a cluster no more than Ray was given of this node.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else sys.maxsize
    return max(1, min(ray_internals.limit_of_cpus(), allowed, _cpus_of_node()))


def _cpus_of_node() -> int:
    """CPUs that Ray counts here; no limit outside of a cluster, or on a node without any."""
    if not ray.is_initialized():
        return sys.maxsize
    here = ray.get_runtime_context().get_node_id()
    found: dict[str, float] = next(
        (node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {}
    )
    return int(found.get("CPU", 0)) or sys.maxsize


def _object_store_bytes() -> int:
    """Room for blocks in flight on this machine, or within the limits of this container."""
    wanted: int = max(OBJECT_STORE_BYTES, node_cpus() * OBJECT_STORE_BYTES_PER_CPU)
    if sys.platform == "linux":  # for what does not fit there, Ray takes a file on the disk
        wanted = min(wanted, max(OBJECT_STORE_BYTES, ray_internals.shared_memory_bytes()))
    return min(wanted, ray_internals.available_memory_bytes() // 5)


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
    found = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)
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

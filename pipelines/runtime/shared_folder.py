"""Whether a folder is the same one on every machine of a cluster: a marker is looked for."""

import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import UserError

PATIENCE_S = 10.0  # a network file system may show a new file late
LOOK_S = 0.5
ANSWER_S = 120.0  # for a busy machine to start a process


def require_shared(flag: str, place: str) -> None:
    """Refuse a folder of this machine that other nodes of the cluster do not have.

    Args:
        flag: that named it.
        place: URI; a local folder is made if it is not there, others are everywhere the same.

    Raises:
        UserError: a node does not see what was written there; the message names it.
    """
    everywhere = "://" in place and not place.startswith("file://")
    if everywhere or not ray.is_initialized():  # tasks may run in this process alone
        return
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    folder = Path(place.removeprefix("file://")).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    try:
        looks = {look_from(node, marker): address for node, address in nodes.items()}
        answered, _ = ray.wait(list(looks), num_returns=len(looks), timeout=ANSWER_S)
        without = sorted(looks[look] for look in answered if not _answer(look))
    finally:
        marker.unlink()
    if without:
        raise UserError(
            f"{flag} is '{folder}', which {len(without)} of the {len(nodes)} nodes of this cluster "
            f"({', '.join(without)}) do not have: give --{flag} s3://BUCKET/PREFIX, or a folder of "
            "a file system that all of them mount at the same path"
        )


def look_from(node: str, marker: Path) -> Any:
    """The answer, yet to come, of a node to whether it has a file."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there)(is_seen).remote(marker)


def _answer(look: Any) -> bool:
    """No objection from a node that has died since."""
    try:
        return bool(ray.get(look))
    except ray.exceptions.RayError:
        return True


def is_seen(marker: Path) -> bool:
    """Whether a file is there, or appears soon."""
    until = time.monotonic() + PATIENCE_S
    while not marker.exists():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True

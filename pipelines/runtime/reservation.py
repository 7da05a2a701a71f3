"""CPUs and GPUs that a job keeps for as long as it runs, agreed on by all jobs of a cluster.

What holds a CPU and waits for tasks that need another (a training and its data) starves, and
starves others, when several such jobs fill a cluster: Ray places each of them without regard to
what the others will still need. So each claims all that it needs before it starts, in the order of
their coming, and waits until it fits. A claim is the name of its mailbox actor, which ends with its
owner, however that dies.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
import ray.util

from pipelines.errors import counted
from pipelines.runtime.mailbox import create_mailbox

NAMESPACE = "context-encoder-claims"
POLL_S = 1.0
LOOKS = 4  # at what is used, which may be tasks that end at once


class Claim(NamedTuple):
    """What one job keeps; the earliest comes first."""

    at: float
    """Seconds of the Unix clock at which it was made."""
    id: str
    cpus: int
    gpus: int

    def __str__(self) -> str:
        """The name of its actor."""
        return f"{self.at:.3f} {self.id} {self.cpus} {self.gpus}"


class Reservation(NamedTuple):
    """What was granted."""

    cpus: int
    mailbox: Any


@contextmanager
def reserve(*, cpus: int, gpus: int, tell: Callable[[str], None]) -> Iterator[Reservation]:
    """Keep that many CPUs (fewer where others than our jobs hold some, but one) and GPUs.

    Args:
        cpus: wanted, for what runs all the time and for the tasks that feed it.
        gpus: needed.
        tell: gets one line if this job has to wait.
    """
    free = _not_foreign("CPU", cpus)
    kept = max(1, min(cpus, free)) if cpus else 0
    claim = Claim(round(time.time(), 3), uuid.uuid4().hex[:8], kept, gpus)
    mailbox = create_mailbox(name=str(claim), namespace=NAMESPACE)
    try:
        ray.get(mailbox.failure.remote())  # it is listed
        _wait(claim, tell)
        yield Reservation(claim.cpus, mailbox)
    finally:
        ray.kill(mailbox)


def claims() -> list[Claim]:
    """All of the cluster, in the order of their coming."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"].split() for each in named if each["namespace"] == NAMESPACE]
    return sorted(Claim(float(at), key, int(c), int(g)) for at, key, c, g in names)


def _wait(claim: Claim, tell: Callable[[str], None]) -> None:
    told = False
    while True:
        before = [each for each in claims() if each < claim]  # itself is none of them
        lacking = [
            f"{needed} {kind}s, of which {max(0, free - taken)} are free"
            for kind, needed, free, taken in (
                ("CPU", claim.cpus, _not_foreign("CPU", claim.cpus), sum(c.cpus for c in before)),
                ("GPU", claim.gpus, _not_foreign("GPU", claim.gpus), sum(c.gpus for c in before)),
            )
            if taken + needed > free and needed
        ]
        if not lacking:
            return
        if not told:
            tell(
                f"waiting for {' and '.join(lacking)}: {counted(len(before), 'job')} of this kind "
                "came before, and other programs may hold some (so does this job's own "
                "--entrypoint-num-cpus); it starts when there is room"
            )
            told = True
        time.sleep(POLL_S)


def _not_foreign(kind: str, wanted: int) -> int:
    """How many of a kind are not held by others than the jobs that claim."""
    total = ray.cluster_resources().get(kind, 0.0)
    found = 0.0
    for look in range(LOOKS):
        ours = sum(each.cpus if kind == "CPU" else each.gpus for each in claims())
        held = total - ray.available_resources().get(kind, 0.0)
        found = max(found, total - max(0.0, held - ours))
        if found >= min(wanted, total):
            break
        if look < LOOKS - 1:
            time.sleep(POLL_S)
    return int(found)

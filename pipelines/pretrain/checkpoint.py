"""Checkpoints: whole or not there, verified before use, loadable without Ray and without pickle.

    checkpoints/step-00000200/state.safetensors   networks and optimizers
                              state.json          step, curves, sha256; written last

The newest checkpoint that verifies is the only record of how far a run is: the stream starts at
its step, and a worker loads the checkpoint of the step that the stream sends first.
"""

import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from pipelines import storage, weights

TENSORS = "state.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    uri: str
    step: int
    state: dict[str, Any]
    """What `save` was given: curves and totals."""

    def tensors(self) -> dict[str, Tensor]:
        """Networks and optimizers by flat names, on the CPU."""
        return safetensors.torch.load(_verified(self.uri, self.state))


def save(stage_uri: str, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> str:
    """Write the checkpoint of a step; returns its URI."""
    uri = storage.join(stage_uri, "checkpoints", f"step-{step:08d}")
    with storage.staged_file(storage.join(uri, TENSORS)) as staged:
        weights.write_tensors(tensors, staged)
        digest, size = storage.sha256_of(staged), staged.stat().st_size
    record = {**state, "step": step, "sha256": digest, "bytes": size}
    storage.publish(storage.join(uri, STATE), json.dumps(record).encode())
    return uri


def prune(stage_uri: str, keep: int) -> None:
    """Remove all but the newest checkpoints; the commit file goes first."""
    for name in _names(stage_uri)[keep:]:
        uri = storage.join(stage_uri, "checkpoints", name)
        storage.remove(storage.join(uri, STATE))
        storage.remove(uri)


def latest(stage_uri: str) -> Checkpoint | None:
    """The newest checkpoint whose files are what they were when it was written."""
    for name in _names(stage_uri):
        uri = storage.join(stage_uri, "checkpoints", name)
        if found := _read(uri):
            return found
    return None


def at_step(stage_uri: str, step: int) -> Checkpoint:
    """The checkpoint of a step that `latest` has found."""
    uri = storage.join(stage_uri, "checkpoints", f"step-{step:08d}")
    return Checkpoint(uri, step, storage.read_json(storage.join(uri, STATE)))


def _names(stage_uri: str) -> list[str]:
    names = storage.children(storage.join(stage_uri, "checkpoints"))
    return sorted((name for name in names if name.startswith("step-")), reverse=True)


def _read(uri: str) -> Checkpoint | None:
    """None for what a crash or a fault left unusable; an older checkpoint is then used."""
    try:
        state = storage.read_json(storage.join(uri, STATE))
        _verified(uri, state)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(uri, int(state["step"]), state)


def _verified(uri: str, state: dict[str, Any]) -> bytes:
    data = storage.read_bytes(storage.join(uri, TENSORS))
    if storage.sha256_of_bytes(data) != state["sha256"]:
        raise ValueError(f"{uri} does not hold what it held when it was written")
    return data

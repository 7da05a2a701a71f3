"""Checkpoints: whole or not there, verified before use, loadable without Ray and without pickle.

    checkpoints/step-00000200/state.safetensors   networks and optimizers
                              state.json          step, curves, sha256; written last

The newest checkpoint that verifies is the only record of how far a run is: the stream starts at
its step, and a worker loads the checkpoint of the step that the stream sends first.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from pipelines import storage
from pipelines.models import files

TENSORS = "state.safetensors"
STATE = "state.json"
AVERAGE_UPDATES = "average.updates"  # a count beside the averaged weights


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    uri: str
    step: int
    state: dict[str, Any]
    """What `save` was given: curves and totals."""

    def tensors(self) -> dict[str, Tensor]:
        """Networks, optimizers and the moving average by flat names, on the CPU."""
        return safetensors.torch.load(_verified(self.uri, self.state))


def exported_weights(tensors: Mapping[str, Tensor], export: str) -> dict[str, Tensor]:
    """The generator among the tensors of a checkpoint, or its moving average (`ema`), by name."""
    prefix = "average." if export == "ema" else "generator."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and name != AVERAGE_UPDATES
    }


def save(stage_uri: str, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> str:
    """Write the checkpoint of a step; returns its URI."""
    uri = _uri(stage_uri, _name(step))
    with storage.staged_file(storage.join(uri, TENSORS)) as staged:
        files.write_tensors(tensors, staged)
        digest, size = storage.sha256_of(staged), staged.stat().st_size
    record = {**state, "step": step, "sha256": digest, "bytes": size}
    storage.publish(storage.join(uri, STATE), json.dumps(record).encode())
    return uri


def prune(stage_uri: str, saved: int, keep: int, keep_best: int = 0) -> None:
    """Keep the newest checkpoints up to the one just saved and the best; the state goes first.

    One of a later step that can be used is another process's; one that cannot is in the way.

    Args:
        stage_uri: where the checkpoints are.
        saved: step of the one just saved.
        keep: how many of the newest stay.
        keep_best: how many more stay of those with the highest `score` in their state.
    """
    names = _names(stage_uri)
    later = [name for name in names if name > _name(saved)]
    unusable = [name for name in later if _read(_uri(stage_uri, name)) is None]
    older = names[len(later) + keep :]
    best = sorted(older, key=lambda name: _score(stage_uri, name), reverse=True)[:keep_best]
    for name in unusable + [name for name in older if name not in best]:
        uri = _uri(stage_uri, name)
        storage.remove(storage.join(uri, STATE))
        storage.remove(uri)


def latest(
    stage_uri: str, usable: Callable[[Checkpoint], bool] = lambda _: True
) -> Checkpoint | None:
    """The newest checkpoint whose files are what they were when it was written.

    Args:
        stage_uri: where the checkpoints are.
        usable: what else is asked of it.
    """
    for name in _names(stage_uri):
        found = _read(_uri(stage_uri, name))
        if found is not None and usable(found):
            return found
    return None


def passed_over(stage_uri: str, found: Checkpoint | None) -> list[str]:
    """Names of the newer ones that `latest` could not use."""
    newest = "" if found is None else _name(found.step)
    return [name for name in _names(stage_uri) if name > newest]


def is_checkpoint(uri: str) -> bool:
    """Whether a folder is a checkpoint."""
    return storage.exists(storage.join(uri, STATE))


def read(uri: str) -> Checkpoint:
    """The checkpoint in a folder; its tensors are verified when they are read."""
    state = storage.read_json(storage.join(uri, STATE))
    return Checkpoint(uri, int(state["step"]), state)


def at_step(stage_uri: str, step: int) -> Checkpoint:
    """The checkpoint of a step that `latest` has found."""
    return read(_uri(stage_uri, _name(step)))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _uri(stage_uri: str, name: str) -> str:
    return storage.join(stage_uri, "checkpoints", name)


def _names(stage_uri: str) -> list[str]:
    names = storage.children(storage.join(stage_uri, "checkpoints"))
    return sorted((name for name in names if name.startswith("step-")), reverse=True)


def _score(stage_uri: str, name: str) -> float:
    """Of a checkpoint; the lowest where it was not measured or cannot be read."""
    try:
        state = storage.read_json(storage.join(_uri(stage_uri, name), STATE))
    except (FileNotFoundError, ValueError):
        return -math.inf
    score = state.get("score")
    return -math.inf if score is None else float(score)


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

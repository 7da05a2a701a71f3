"""What the weights of a checkpoint are good for, measured by a Ray task beside the training.

Fillings for the holes of every strategy that the dataset holds and the network can fill, and where
there are labels, how well the features of the deepest layer tell them apart: by their nearest
neighbours and by a linear map. A quick look at few images, not the protocol of jobs/evaluate.py.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ce_model.transfer.metrics import neighbour_vote, ridge
from pipelines.data import images, shards, stream
from pipelines.data.images import ImageArray
from pipelines.errors import first_line
from pipelines.models import checkpoint, embed, files
from pipelines.models.backbones import build_network
from pipelines.models.files import LoadedModel
from pipelines.pretrain import validation
from pipelines.pretrain.task import Task

NEIGHBOURS = 10
PENALTY = 1.0  # of the linear map, for features of length 1
CHUNK = 64  # images at once
CPU = torch.device("cpu")
NICENESS = 10  # above that of the training, which comes first


class Running(NamedTuple):
    """A probe at work."""

    step: int
    began: float
    measured: Any


class Probes:
    """On the driver: one probe at a time, and nothing waits for it while training goes on.

    Attributes:
        left_out: checkpoints that gave way to a newer one before they could be measured.
    """

    def __init__(
        self,
        task: Task,
        every: int | None,
        add: Callable[[dict[str, float], int, float], None],
        tell: Callable[[str], None],
    ) -> None:
        """Nothing measured yet.

        Args:
            task: the training.
            every: steps between probes; None makes none.
            add: takes the values of a step and the time they are of.
            tell: gets a line for what could not be measured.
        """
        self._task, self._every, self._add, self._tell = task, every, add, tell
        self._running: Running | None = None
        self._next: int | None = None
        self.left_out = 0

    def checkpoint(self, step: int) -> None:
        """A checkpoint is written: measure it as soon as the one before is done."""
        if not self._every or (step % self._every and step != self._task.plan.steps):
            return
        self.collect()
        if self._next is not None:
            self.left_out += 1
            self._tell(
                f"the probe of step {self._next} is left out, since one is still at work "
                f"({self.left_out} left out so far; a larger --probe-every makes them fewer)"
            )
        self._next = step
        self.collect()

    def collect(self, wait_s: float = 0.0) -> None:
        """Take what has been measured, and begin what is next."""
        if self._running is not None and ray.wait([self._running.measured], timeout=wait_s)[0]:
            done, self._running = self._running, None
            try:
                values = ray.get(done.measured)
            except Exception as error:  # whatever a probe does, training goes on
                self._tell_failure(done.step, getattr(error, "cause", error))
            else:
                took = {"probe/seconds": time.time() - done.began}
                self._add(values | took, done.step, done.began)
        if self._running is None and self._next is not None:
            step, self._next = self._next, None
            # Where every CPU is held, it takes what they leave idle; its process ends with it.
            free = ray.available_resources().get("CPU", 0.0) >= 1
            start = ray.remote(num_cpus=int(free), max_retries=0, max_calls=1)(_measure_aside)
            self._running = Running(step, time.time(), start.remote(self._task, step))

    def close(self, wait_s: float) -> None:
        """Wait for the last one."""
        deadline = time.monotonic() + wait_s
        while self._running is not None:
            self.collect(max(0.0, deadline - time.monotonic()))
            if self._running is not None and time.monotonic() >= deadline:
                self._tell(f"the probe of step {self._running.step} is left out: it took too long")
                ray.cancel(self._running.measured, force=True)
                self._running = None

    def _tell_failure(self, step: int, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            self._tell(
                f"the probe of step {step} is left out: its checkpoint was removed before it was "
                "read (--keep-checkpoints keeps more)"
            )
        else:
            self._tell(f"warning: the probe of step {step} failed: {first_line(error)}")


def _measure_aside(task: Task, step: int) -> dict[str, float]:
    os.nice(NICENESS)
    return measure(task, step)


def measure(task: Task, step: int) -> dict[str, float]:
    """All curves of a checkpoint.

    Raises:
        FileNotFoundError: the checkpoint was removed since.
    """
    torch.set_num_threads(1)
    task = task.for_workers(1)
    model = exported(task, checkpoint.at_step(task.stage_uri, step))
    return measure_fillings(model, task) | measure_features(model, task)


def exported(task: Task, found: checkpoint.Checkpoint) -> LoadedModel:
    """The model that a checkpoint would become, on the CPU."""
    generator = build_network(task.recipe.network)
    weights = checkpoint.exported_weights(found.tensors(), task.recipe.export)
    files.load_strictly(generator, weights, found.uri)
    return LoadedModel(generator.eval(), task.recipe.network, task.recipe.objective, {})


def measure_fillings(model: LoadedModel, task: Task) -> dict[str, float]:
    """probe/STRATEGY/psnr_hole (dB) and ssim_hole of the first validation images."""
    if model.network.preset == "features":
        return {}  # it predicts targets, which the validation measures
    found = {}
    look = validation.EvalSettings(model.network, model.objective, torch.float32)
    for spec in task.plan.manifest.masks:
        fillable = model.network.output == "full" or spec.strategy == "central"
        if spec.side != task.plan.side or not fillable:
            continue
        plan = replace(task.plan, strategy=spec.strategy)
        fixed = stream.read_fixed_images(plan, "val", task.probe_images)
        measured = validation.measure_colours(
            model.generator, validation.to_device(*fixed, CPU), look
        )
        for name in ("psnr_hole", "ssim_hole"):
            found[f"probe/{spec.strategy}/{name}"] = measured[name]
    return found


def measure_features(model: LoadedModel, task: Task) -> dict[str, float]:
    """probe/knn_accuracy and probe/linear_accuracy; nothing without two classes."""
    known, labels = _read_labelled(task, "train", model.side)
    asked, truth = _read_labelled(task, "val", model.side)
    if not len(asked) or len(np.unique(labels)) < 2:
        return {}
    layer = embed.require_layer(model, None)

    def features(batch: NDArray[np.uint8]) -> NDArray[np.float64]:
        parts = [
            embed.embed_squares(model, batch[at : at + CHUNK], layer, "mean", normalize=True)
            for at in range(0, len(batch), CHUNK)
        ]
        return np.concatenate(parts).astype(np.float64)

    database, queries = features(known), features(asked)
    voted = neighbour_vote(queries, database, labels, min(NEIGHBOURS, len(database)))
    (linear,) = ridge(database, np.eye(int(labels.max()) + 1)[labels], [PENALTY])
    return {
        "probe/knn_accuracy": float(np.mean(voted == truth)),
        "probe/linear_accuracy": float(np.mean(linear(queries).argmax(1) == truth)),
    }


def _read_labelled(
    task: Task, split: str, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first images of a split that have a class: uint8 (N, side, side, 3) and (N,)."""
    squares: list[ImageArray] = []
    labels: list[int] = []
    for group in shards.row_groups(task.plan.manifest, split):
        if len(squares) >= task.probe_images:
            break
        table = shards.read_row_group(task.plan.uri, group, ["image", "label"])
        cells = shards.cells(table.column("image"))
        for jpeg, label in zip(cells, table.column("label").to_pylist(), strict=True):
            if label is not None and label >= 0 and len(squares) < task.probe_images:
                squares.append(images.square(images.decode(jpeg), side, side, 0.5, 0.5))
                labels.append(label)
    stacked = np.stack(squares) if squares else np.empty((0, side, side, 3), np.uint8)
    return stacked, np.array(labels, np.int64)

"""What a rank does beside its steps: curves, divergence, validation, panel and checkpoints."""

import time
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ce_model import training
from ce_model.training import Networks, Optimizers
from ce_model.training.fault import Fault
from ce_model.training.loss_scale import HALVINGS
from pipelines.data import stream
from pipelines.pretrain.curves import Curves
from pipelines.pretrain.ddp import require_equal_parameters
from pipelines.pretrain.divergence import MAX_ROLLBACKS, DivergenceWatch
from pipelines.pretrain.messages import (
    CheckpointWritten,
    CurvePoint,
    Diverged,
    FaultFound,
    Message,
    Note,
    PanelReady,
    Resumed,
    StepsDone,
    SystemPoint,
    TraceReady,
)
from pipelines.pretrain.rollback import roll_back
from pipelines.pretrain.saver import CheckpointSaver
from pipelines.pretrain.system_metrics import SystemMetrics
from pipelines.pretrain.task import Task
from pipelines.pretrain.validator import Validator

TELL_EVERY_S = 1.0


class Reporter:
    """Brings the parts together at each step; rank 0 posts messages and writes checkpoints.

    Attributes:
        curves: averages, totals and the time that the device waited for data.
    """

    def __init__(
        self,
        task: Task,
        mailbox: Any,
        rank: int,
        curves: Curves,
        validator: Validator,
        system: SystemMetrics | None = None,
    ) -> None:
        """Nothing reported yet; one process of each node has `system`."""
        self._system = system
        self.rank, self.curves = rank, curves
        self._task, self._mailbox, self._validator = task, mailbox, validator
        searched = HALVINGS if task.precision == "fp16" else 0
        self._divergence = DivergenceWatch(task.plan.steps, searched)
        self._left_out: int | None = None  # updates in a row, when the run has diverged
        self._history: list[dict[str, Any]] = []
        self._untrained: dict[str, float] = {}
        self._saver = CheckpointSaver(
            task.stage_uri, task.keep_checkpoints, task.keep_best,
            lambda step: self._post(CheckpointWritten(step)),
        )  # fmt: skip
        self._pause_s: float | None = None  # of the last checkpoint
        self._score: tuple[int, float] | None = None  # of the last validation, by step
        self._step, self._told_at = 0, -TELL_EVERY_S

    def begin(self, networks: Networks) -> None:
        """Measure the untrained network."""
        networks = self._validator.settled_copy(networks)
        self._untrained = self._validator.measure(networks.generator)
        self._untrained |= self._validator.measure_classical()
        self._post_panel(0, networks, None)
        self._post(StepsDone(0))
        self.curves.restart_clock()

    def resume(self, state: dict[str, Any]) -> None:
        """Continue the curves and totals of a checkpoint."""
        self._history = list(state["history"])
        self._untrained = state["untrained"]
        self._step = state["step"]
        self._divergence.resume(state.get("divergence", {}))
        self._post(Resumed(state["step"], self._history))
        self.curves.resume(state["totals"], restarted="continues" not in state)

    def add(self, values: dict[str, Tensor]) -> None:
        """Collect what a step returned, without waiting for the device."""
        self.curves.add(values)
        self._step += 1
        if (now := time.monotonic()) - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._post(StepsDone(self._step))

    def log(self, step: int, rates: tuple[float, float]) -> bool:
        """Post a point of the curves; False when the run has diverged, on all ranks alike."""
        values, skipped = self.curves.average()
        values["learning_rate/generator"] = rates[0]
        if self._task.recipe.objective.adversarial > 0:
            values["learning_rate/discriminator"] = rates[1]
        if self._pause_s is not None:
            values["checkpoint/pause_seconds"], self._pause_s = self._pause_s, None
        if self._saver.last_write_s is not None:
            values["checkpoint/write_seconds"] = self._saver.last_write_s
            self._saver.last_write_s = None
        values["rollbacks"] = float(self._divergence.rollbacks)
        self._record(step, values)
        if self._system is not None and (seen := self._system.take()):
            self._mailbox.post.remote(SystemPoint(step, time.time(), seen))
        self._left_out = self._divergence.diverged_after(skipped)
        return self._left_out is None

    @property
    def is_finite(self) -> bool:
        """Whether the update of the last step that was logged was applied."""
        return self._divergence.in_a_row == 0

    def roll_back(self, step: int, networks: Networks, optimizers: Optimizers) -> bool:
        """Go on from the last good weights; False where that is not possible, on all ranks alike.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        reached = None
        if self._divergence.may_roll_back():
            self._saver.wait()
            with self.curves.pause():
                device = next(networks.generator.parameters()).device
                reached = roll_back(self._task.stage_uri, networks, optimizers, self.rank, device)
        updates = self._left_out or 0
        if reached is None:
            self._post(Diverged(step, updates, self._divergence.rollbacks))
            return False
        self._divergence.rolled_back()
        self._post(Note(
            f"warning: {updates} updates in a row up to step {step} were not finite; the weights "
            f"are those of step {reached} again, and training goes on with the next batch "
            f"(time {self._divergence.rollbacks} of at most {MAX_ROLLBACKS})"
        ))  # fmt: skip
        return True

    def blame(self, step: int, fault: Fault | None) -> None:
        """Tell what this rank found in the batch of a step, with the keys of the images."""
        if fault is None:
            return
        share = self._task.plan.worker_batch
        mine = stream.keys_of(self._task.plan, step)[self.rank * share :][:share]
        keys = tuple(mine[at] for at in fault.images) or tuple(mine)
        self._mailbox.post.remote(FaultFound(step, self.rank, fault.where, keys))

    def traced(self, uri: str) -> None:
        """Tell of a trace of some steps."""
        self._post(TraceReady(uri))

    def settle(self, networks: Networks, optimizers: Optimizers) -> None:
        """Make the running statistics fit for evaluation, and equal on all ranks."""
        with self.curves.pause():
            self._validator.settle(networks, optimizers.average)

    def validate(self, step: int, networks: Networks, optimizers: Optimizers) -> None:
        """Errors in the hole on the fixed images, and the panel."""
        with self.curves.pause():
            point = self._validator.measure_all(networks, optimizers.average)
            if "psnr_hole" in self._untrained:
                point["validation/psnr_untrained"] = self._untrained["psnr_hole"]
            if "psnr_telea" in self._untrained:
                point["validation/psnr_telea"] = self._untrained["psnr_telea"]
            self._record(step, point)
            prefix = "validation_ema" if self._task.recipe.export == "ema" else "validation"
            psnr, error = point.get(f"{prefix}/psnr_hole"), point.get(f"{prefix}/target_error")
            score = psnr if error is None else -error  # preset features predicts targets
            score = point.get(f"{prefix}/accuracy", score)  # a sibling pretext answers
            self._score = None if score is None else (step, score)
            self._post_panel(step, networks, optimizers)

    def checkpoint(self, step: int, networks: Networks, optimizers: Optimizers) -> None:
        """Make sure that the ranks agree; rank 0 begins to write what a restart needs.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        require_equal_parameters(networks)
        if self.rank != 0:
            return
        with self.curves.pause():
            began = time.perf_counter()
            recipe = self._task.recipe
            scored = self._score is not None and self._score[0] == step
            state = {
                "history": list(self._history),
                "totals": dict(self.curves.totals),
                "score": self._score[1] if self._score is not None and scored else None,
                "untrained": self._untrained,
                "divergence": self._divergence.state(),
                "network": asdict(recipe.network),  # to measure a checkpoint
                "objective": asdict(recipe.objective),
                "export": recipe.export,
            }
            self._saver.wait()  # before the copy, so that there is one at a time
            self._saver.save(step, training.state_tensors(networks, optimizers), state)
            self._pause_s = time.perf_counter() - began

    def close(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it could not be.
        """
        self._saver.wait()

    def _record(self, step: int, values: dict[str, float]) -> None:
        point = CurvePoint(step, time.time(), values)
        self._history.append(point._asdict())
        self._post(point)

    def _post_panel(self, step: int, networks: Networks, optimizers: Optimizers | None) -> None:
        if self.rank != 0:
            return
        images = self._validator.panel(networks, optimizers.average if optimizers else None)
        if images is not None:
            self._post(PanelReady(step, images))

    def _post(self, message: Message) -> None:
        if self.rank == 0:
            self._mailbox.post.remote(message)

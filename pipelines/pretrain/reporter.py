"""What rank 0 reports while it trains: losses, panels, checkpoints, divergence."""

import copy
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ce_model import training
from ce_model.training import Networks, Optimizers
from pipelines.models import checkpoint
from pipelines.pretrain import validation
from pipelines.pretrain.data_wait import DataWaitClock
from pipelines.pretrain.ddp import require_equal_parameters, share_buffers
from pipelines.pretrain.task import Task

SKIPPED_IN_A_ROW = 10  # updates that could not be applied: now the weights are at fault


class Reporter:
    """Curves, validation, panel and checkpoints of a run; rank 0 posts and writes."""

    def __init__(
        self,
        task: Task,
        mailbox: Any,
        rank: int,
        ranks: int,
        dtype: torch.dtype,
        pictures: validation.FixedImages,
        typical: validation.FixedImages | None,
    ) -> None:
        """Nothing measured yet.

        `typical` are the training images that give batch norm its statistics again, without
        dropout; None keeps those of training.
        """
        self.rank = rank
        self._task, self._mailbox, self._ranks = task, mailbox, ranks
        self._look = validation.EvalSettings(task.recipe.network, task.recipe.objective, dtype)
        self._pictures, self._typical = pictures, typical
        self._sums: dict[str, Tensor] = {}
        self._skipped: list[Tensor] = []  # of each step since the last point
        self._in_a_row = 0
        self.idle = DataWaitClock(pictures.image.device)
        self._clock = time.perf_counter()
        self._history: list[dict[str, Any]] = []
        self._totals = {"train_s": 0.0, "wait_s": 0.0, "steps": 0, "restarts": 0, "skipped": 0}
        self._untrained: dict[str, float] = {}

    def begin(self, networks: Networks) -> None:
        """Measure the untrained network."""
        if self._typical is not None:
            # A copy: training goes on with the statistics that it has.
            networks = Networks(copy.deepcopy(networks.generator), None)
            self.settle(networks)
        self._untrained = validation.measure(networks.generator, self._pictures, self._look)
        self._untrained |= validation.measure_classical(self._pictures, self._look)
        self._post_panel(0, networks)
        self._clock = time.perf_counter()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on with the curves and totals of a checkpoint."""
        self._history = list(state["history"])
        self._totals = {**state["totals"], "restarts": state["totals"]["restarts"] + 1}
        self._untrained = state["untrained"]
        self._post({"kind": "resumed", "step": state["step"], "history": self._history})
        self._clock = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Collect a step without waiting for the device; of a skipped one only that it was."""
        skipped = values["nonfinite"]
        for name in values.keys() - {"nonfinite"}:
            applied = torch.where(skipped.bool(), 0, values[name])
            self._sums[name] = self._sums[name] + applied if name in self._sums else applied
        self._skipped.append(skipped)

    def log(self, step: int, rates: tuple[float, float]) -> bool:
        """Average over the applied steps since the last point and over the ranks.

        Returns:
            False when SKIPPED_IN_A_ROW steps in a row, or all of a shorter run, were skipped.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        if self._ranks > 1:
            torch.distributed.all_reduce(sums)
            sums /= self._ranks
        skipped = torch.stack(self._skipped).bool().tolist()  # waits for the device
        wait_s = self.idle.take()
        steps, applied = len(skipped), skipped.count(False)
        elapsed = time.perf_counter() - self._clock
        self._totals["train_s"] += elapsed
        self._totals["wait_s"] += wait_s
        self._totals["steps"] += steps
        self._totals["skipped"] += steps - applied
        point = dict(zip(names, (sums / applied).tolist(), strict=True)) if applied else {}
        point |= {
            "learning_rate/generator": rates[0],
            "images_per_second": self._task.plan.batch_size * steps / elapsed,
            "seconds_per_step": elapsed / steps,
            "data_wait_share": wait_s / elapsed,
            "updates_skipped": float(self._totals["skipped"]),
            "memory/rank_0_peak_bytes": peak_rss_bytes(),
        }
        if self._task.recipe.objective.adversarial > 0:
            point["learning_rate/discriminator"] = rates[1]
        self._record(step, point)
        longest = self._longest_row(skipped)
        diverged = longest >= min(SKIPPED_IN_A_ROW, self._task.plan.steps)
        if diverged:
            self._post({"kind": "diverged", "step": step, "updates": longest})
        self._sums, self._skipped = {}, []
        self._clock = time.perf_counter()
        return not diverged

    def _longest_row(self, skipped: list[bool]) -> int:
        """Most updates skipped in a row; a row may have begun before the last point."""
        longest = 0
        for skip in skipped:
            self._in_a_row = self._in_a_row + 1 if skip else 0
            longest = max(longest, self._in_a_row)
        return longest

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """What happens inside is not training time."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def settle(self, networks: Networks) -> None:
        """Make the running statistics fit for evaluation, and equal on all ranks."""
        with self._pause():
            if self._typical is not None:
                training.estimate_statistics(
                    networks.generator, self._typical.image, self._typical.hidden,
                    **self._look._asdict(),
                )  # fmt: skip
            share_buffers(networks)

    def validate(self, step: int, networks: Networks) -> None:
        """Errors in the hole on the fixed images, and the panel."""
        with self._pause():
            self._validate(step, networks)

    def _validate(self, step: int, networks: Networks) -> None:
        measured = validation.measure(
            training.unwrap(networks.generator), self._pictures, self._look
        )
        point = {f"validation/{name}": value for name, value in measured.items()}
        if "psnr_hole" in self._untrained:
            point["validation/psnr_untrained"] = self._untrained["psnr_hole"]
        if "psnr_telea" in self._untrained:
            point["validation/psnr_telea"] = self._untrained["psnr_telea"]
        self._record(step, point)
        self._post_panel(step, networks)

    def checkpoint(self, step: int, networks: Networks, optimizers: Optimizers) -> None:
        """Make sure that the ranks agree; rank 0 writes what a restart needs."""
        require_equal_parameters(networks)
        if self.rank != 0:
            return
        with self._pause():
            state = {
                "history": self._history,
                "totals": self._totals,
                "untrained": self._untrained,
                "network": asdict(
                    self._task.recipe.network
                ),  # so that a checkpoint can be measured
                "objective": asdict(self._task.recipe.objective),
            }
            tensors = training.state_tensors(networks, optimizers)
            uri = checkpoint.save(self._task.stage_uri, step, tensors, state)
            checkpoint.prune(self._task.stage_uri, step, self._task.keep_checkpoints)
            self._post({"kind": "checkpoint", "step": step, "uri": uri})

    def _record(self, step: int, values: dict[str, float]) -> None:
        record = {"kind": "curves", "step": step, "time": time.time(), "values": values}
        self._history.append(record)
        self._post(record)

    def _post_panel(self, step: int, networks: Networks) -> None:
        if self.rank == 0 and len(self._pictures.image):
            shown = validation.panel(
                training.unwrap(networks.generator), self._pictures, self._look
            )
            self._post({"kind": "panel", "step": step, "pictures": shown})

    def _post(self, message: dict[str, Any]) -> None:
        if self.rank == 0:
            self._mailbox.post.remote(message)


def peak_rss_bytes() -> float:
    """Largest resident memory this process has had (Linux reports KiB)."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024

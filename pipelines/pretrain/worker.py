"""What each training process does: take batches from the stream, step, report, checkpoint."""

import copy
import hashlib
import itertools
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from ce_model import graphed, training
from ce_model.networks import NetworkConfig, build_discriminator, build_generator
from ce_model.training import Networks, Objective, Optimizers, Precision
from pipelines import memory, storage, stream
from pipelines.errors import UserError
from pipelines.pretrain import checkpoint, feed, validation
from pipelines.pretrain.idle import Idle
from pipelines.progress import Failure
from pipelines.stream import StreamPlan

SKIPPED_IN_A_ROW = 10  # updates that could not be applied: now the weights are at fault


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training process has to know."""

    plan: StreamPlan
    stage_uri: str
    network: NetworkConfig
    objective: Objective
    learning_rates: tuple[float, float]
    precision: Precision
    compile: bool
    threads: int | None
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int
    validate_every: int
    validation_images: int


def training_stream(task: Task) -> ray.data.Dataset:
    """The stream from the newest verified checkpoint on; evaluated at every worker-group start."""
    found = checkpoint.latest(task.stage_uri)
    return stream.stream(task.plan, start_step=found.step if found else 0)


def train(settings: dict[str, Any]) -> None:
    """The training function of Ray Train, which starts it again after a failure.

    What lies outside the program (a full disk, a damaged dataset, a storage that is away) is told
    to the driver; what would be the same the next time is not tried again.
    """
    mailbox = settings["mailbox"]
    before: Failure | None = ray.get(mailbox.failure.remote())
    if before is not None and before.final:
        return
    try:
        _train(settings["task"], mailbox)
    except Exception as error:
        cause = getattr(error, "cause", error)  # of a data task
        if isinstance(cause, UserError | OSError):
            passing = isinstance(cause, FileNotFoundError) or storage.may_pass(cause)
            ray.get(mailbox.fail.remote(Failure(str(cause), final=not passing)))
        raise


def _train(task: Task, mailbox: Any) -> None:
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    share = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    torch.set_num_threads(task.threads or share)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        memory.keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    dtype = resolve_precision(task.precision, device)

    batches = stream.batches(ray.train.get_dataset_shard("train"), task.plan)
    first = next(batches, None)
    if first is None:
        return  # the last checkpoint already holds the last step
    start = int(first["step"][0])

    networks, optimizers = build(task, device)
    part = (rank, ranks)
    pictures = fixed_pictures(task, "val", task.validation_images, part, device)
    typical = None
    if training.dropout_shifts_statistics(networks.generator):
        typical = fixed_pictures(
            task, "train", max(training.STATISTICS_PICTURES, ranks), part, device
        )
    reporter = Reporter(task, mailbox, rank, ranks, dtype, pictures, typical)
    if start == 0:
        reporter.begin(networks)
    else:
        found = checkpoint.at_step(task.stage_uri, start)
        training.load_state_tensors(networks, optimizers, found.tensors())
        reporter.resume(found.state)
    networks = distribute(networks, task)
    batches = itertools.chain([first], batches)
    run(task, networks, optimizers, batches, reporter, device, dtype, start)


def resolve_precision(requested: Precision, device: torch.device) -> torch.dtype:
    """The precision of this worker; what its processor lacks is the user's to mend."""
    try:
        return training.resolve_precision(requested, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def build(task: Task, device: torch.device) -> tuple[Networks, Optimizers]:
    """Fresh networks and optimizers, equal on all ranks."""
    weights = torch.Generator().manual_seed(task.plan.seed)
    generator = build_generator(task.network, generator=weights).to(device)
    discriminator = None
    if task.objective.adversarial > 0:
        discriminator = build_discriminator(task.network, generator=weights).to(device)
    networks = Networks(generator, discriminator)
    return networks, training.make_optimizers(networks, *task.learning_rates)


def distribute(networks: Networks, task: Task) -> Networks:
    """Wrap in DDP when there are several ranks, then compile when asked."""

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        settings = training.ddp_settings()
        wrapped = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=settings)
        if task.compile:
            wrapped.compile()
        return wrapped  # type: ignore[no-any-return]

    generator, discriminator = networks
    return Networks(wrap(generator), None if discriminator is None else wrap(discriminator))


def fixed_pictures(
    task: Task, split: str, count: int, part: tuple[int, int], device: torch.device
) -> validation.Pictures:
    """This rank's share of the first pictures of a split."""
    image, bits = stream.fixed_pictures(task.plan, split, count, part)
    return validation.to_device(image, bits, device)


def run(
    task: Task,
    networks: Networks,
    optimizers: Optimizers,
    batches: Iterator[stream.Batch],
    reporter: "Reporter",
    device: torch.device,
    dtype: torch.dtype,
    start: int,
) -> None:
    """The loop. Batch `step` is trained at step `step`, or the run stops."""
    take = graphed.make_step(
        networks, optimizers, device,
        network=task.network, objective=task.objective, dtype=dtype,
    )  # fmt: skip
    reporter.idle.begin()
    for step, (image, hidden) in enumerate(feed.feed(in_order(batches, start), device), start):
        reporter.idle.end()
        seed_dropout(task.plan.seed, step, reporter.rank)
        reporter.add(take(image, hidden))
        done = step + 1
        last = done == task.plan.steps
        validating = last or done % task.validate_every == 0
        saving = last or done % task.checkpoint_every == 0
        # What goes on at a checkpoint knows of the steps before only what is in a point.
        logging = saving or done % task.log_every == 0
        if logging and not reporter.log(done, task.learning_rates):
            return  # the same on all ranks: gradients are averaged, so all saw the fault
        if validating or saving:
            reporter.settle(networks)
        if validating:
            reporter.validate(done, networks)
        if saving:
            reporter.checkpoint(done, networks, optimizers)
        reporter.idle.begin()


def in_order(batches: Iterator[stream.Batch], start: int) -> Iterator[stream.Batch]:
    """The batches, or a stop at the first that is not the one that belongs there."""
    for expected, batch in enumerate(batches, start):
        first, last = int(batch["step"][0]), int(batch["step"][-1])
        if first != expected or last != expected:
            raise RuntimeError(f"the stream sent batch {first} where {expected} belongs")
        yield batch


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout follows from (seed, step, rank), so that a checkpoint needs no generator state."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


class Reporter:
    """Curves, validation, panel and checkpoints of a run; rank 0 posts and writes."""

    def __init__(
        self,
        task: Task,
        mailbox: Any,
        rank: int,
        ranks: int,
        dtype: torch.dtype,
        pictures: validation.Pictures,
        typical: validation.Pictures | None,
    ) -> None:
        """Nothing measured yet.

        `typical` are the training pictures that give batch norm its statistics again, without
        dropout; None keeps those of training.
        """
        self.rank = rank
        self._task, self._mailbox, self._ranks = task, mailbox, ranks
        self._look = validation.Look(task.network, task.objective, dtype)
        self._pictures, self._typical = pictures, typical
        self._sums: dict[str, Tensor] = {}
        self._skipped: list[Tensor] = []  # of each step since the last point
        self._in_a_row = 0
        self.idle = Idle(pictures.image.device)
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
        if self._task.objective.adversarial > 0:
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
        """Errors in the hole on the fixed pictures, and the panel."""
        with self._pause():
            self._validate(step, networks)

    def _validate(self, step: int, networks: Networks) -> None:
        measured = validation.measure(training.bare(networks.generator), self._pictures, self._look)
        point = {f"validation/{name}": value for name, value in measured.items()}
        if "psnr_hole" in self._untrained:
            point["validation/psnr_untrained"] = self._untrained["psnr_hole"]
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
                "network": asdict(self._task.network),  # so that a checkpoint can be measured
                "objective": asdict(self._task.objective),
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
            shown = validation.panel(training.bare(networks.generator), self._pictures, self._look)
            self._post({"kind": "panel", "step": step, "pictures": shown})

    def _post(self, message: dict[str, Any]) -> None:
        if self.rank == 0:
            self._mailbox.post.remote(message)


def share_buffers(networks: Networks) -> None:
    """The average over the ranks for all: each rank's statistics come from its own pictures."""
    if training.num_ranks() == 1:
        return
    for module in networks:
        for buffer in module.buffers() if module is not None else ():
            if buffer.is_floating_point():
                torch.distributed.all_reduce(buffer)
                buffer /= training.num_ranks()


def require_equal_parameters(networks: Networks) -> None:
    """Stop a run whose ranks have drifted apart: it would train two different networks.

    Raises:
        RuntimeError: the bits of the parameters differ between ranks.
    """
    if training.num_ranks() == 1:
        return
    parameters = [p for module in networks if module is not None for p in module.parameters()]
    bits = torch.stack([p.detach().view(torch.int32).sum(dtype=torch.int64) for p in parameters])
    lowest, highest = bits.clone(), bits
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise RuntimeError("the ranks hold different parameters; the last checkpoint is still good")


def peak_rss_bytes() -> float:
    """Largest resident memory this process has had (Linux reports KiB)."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024

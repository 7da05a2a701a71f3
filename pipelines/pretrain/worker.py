"""What each training process does: take batches from the stream, step, report, checkpoint."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed

from ce_model import training
from ce_model.networks import INPAINTING, build_discriminator
from ce_model.training import Networks, Optimizers, TrainPrecision, cuda_graph
from ce_model.training.fault import find_fault
from pipelines import storage
from pipelines.data import stream
from pipelines.errors import UserError
from pipelines.models import checkpoint
from pipelines.models.backbones import build_network
from pipelines.pretrain import device_feed, profile, validation
from pipelines.pretrain.curves import Curves
from pipelines.pretrain.ddp import distribute
from pipelines.pretrain.initial import read_initial
from pipelines.pretrain.messages import DataRead, Note
from pipelines.pretrain.profile import StepProfiler
from pipelines.pretrain.reporter import Reporter
from pipelines.pretrain.stall import Sign
from pipelines.pretrain.stop import StopWatch
from pipelines.pretrain.system_metrics import SystemMetrics
from pipelines.pretrain.task import Task
from pipelines.pretrain.validator import Validator
from pipelines.runtime import cluster, malloc, ray_internals
from pipelines.runtime.mailbox import Failure

WITH_OPTIMIZERS = 3  # weights and the two moments of Adam, in a checkpoint


def training_stream(task: Task, mailbox: Any) -> ray.data.Dataset:
    """The stream from the newest verified checkpoint on; evaluated at every worker-group start."""
    found = checkpoint.latest(task.stage_uri)
    start = found.step if found else 0
    return stream.stream(task.plan, start, tell_reads=partial(_tell_reads, mailbox))


def _tell_reads(mailbox: Any, use: storage.Use, warnings: tuple[str, ...]) -> None:
    mailbox.post.remote(DataRead(use, warnings))


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
            reason = storage.describe_full(cause, settings["task"].stage_uri) or str(cause)
            ray.get(mailbox.fail.remote(Failure(reason, final=not passing)))
        raise


def _train(task: Task, mailbox: Any) -> None:
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    task = task.for_workers(ranks)
    share = max(1, cluster.node_cpus() // context.get_local_world_size())
    torch.set_num_threads(task.threads or share)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        malloc.keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    dtype = resolve_precision(task.precision, device)

    node_id = ray.get_runtime_context().get_node_id()
    stop = StopWatch(mailbox, Sign(rank, node_id, os.getpid(), "other", 0), ranks, device)
    with stop.running():
        _train_until(task, mailbox, stop, device, dtype)


def _train_until(
    task: Task, mailbox: Any, stop: StopWatch, device: torch.device, dtype: torch.dtype
) -> None:
    """Everything from the first batch on."""
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    batches = stream.batches(ray.train.get_dataset_shard("train"), task.plan)
    first = next(batches, None)
    if first is None:
        return  # the last checkpoint already holds the last step
    start = int(first["step"][0])

    networks, optimizers = build(task, device)
    if rank == 0:
        warn_of_space(task, networks, mailbox)
        if task.threads is None:
            warn_of_others(context.get_local_world_size(), mailbox)
    part = (rank, ranks)
    images = read_fixed_images(task, task.recipe.fixed_split, task.validation_images, part, device)
    typical = None
    if training.dropout_shifts_statistics(networks.generator):
        typical = read_fixed_images(
            task, "train", max(training.STATISTICS_IMAGES, ranks), part, device
        )
    curves = Curves(device, ranks, task.plan.batch_size)
    validator = Validator(task.recipe, dtype, images, typical)
    system = None
    if context.get_local_rank() == 0:
        system = SystemMetrics(f"node_{context.get_node_rank()}", device)
    reporter = Reporter(task, mailbox, rank, curves, validator, system)
    if start == 0:
        reporter.begin(networks)
    else:
        found = checkpoint.at_step(task.stage_uri, start)
        training.load_state_tensors(networks, optimizers, found.tensors())
        reporter.resume(found.state)
    networks = distribute(networks, task)
    if rank == 0:
        for text in hints(task, networks, device):
            mailbox.post.remote(Note(text))
    batches = itertools.chain([first], batches)
    run_steps(task, networks, optimizers, batches, reporter, device, dtype, start, stop)


def resolve_precision(requested: TrainPrecision, device: torch.device) -> torch.dtype:
    """The precision of this worker; what its processor lacks is the user's to fix."""
    try:
        return training.resolve_precision(requested, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def build(task: Task, device: torch.device) -> tuple[Networks, Optimizers]:
    """Networks and optimizers at step 0, equal on all ranks."""
    weights = torch.Generator().manual_seed(task.plan.seed)
    generator = build_network(task.recipe.network, generator=weights)
    if task.has_initial:
        generator.load_state_dict(read_initial(task.stage_uri), strict=False)
    generator = generator.to(device)
    discriminator = None
    if task.recipe.objective.adversarial > 0:
        discriminator = build_discriminator(task.recipe.network, generator=weights).to(device)
    networks = Networks(generator, discriminator)
    return networks, training.make_optimizers(
        networks, *task.recipe.learning_rates, task.recipe.optimization,
        scaled=task.precision == "fp16",
    )  # fmt: skip


def warn_of_space(task: Task, networks: Networks, mailbox: Any) -> None:
    """Tell the driver before the first step, if the store has no room for the checkpoints."""
    free = storage.free_bytes(task.stage_uri)
    tensors = [t for module in networks if module is not None for t in module.parameters()]
    weights = sum(t.numel() * t.element_size() for t in tensors)
    one = weights * WITH_OPTIMIZERS
    needed = one * (task.keep_checkpoints + 1) + weights  # a new one is written before one goes
    if free is not None and free < needed:
        text = (
            f"warning: the store has {free / 1e9:.2f} GB free at {task.stage_uri}; this training "
            f"needs about {needed / 1e9:.2f} GB: {task.keep_checkpoints + 1} checkpoints of "
            f"{one / 1e9:.2f} GB, and the model. Make room, or lower --keep-checkpoints"
        )
        ray.get(mailbox.post.remote(Note(text)))


def warn_of_others(own: int, mailbox: Any) -> None:
    """Tell the driver that other trainings compute on this machine with all its CPUs, too."""
    others = ray_internals.count_training_processes() - own
    if others > 0:
        text = (
            f"{others} other training processes share this machine, and each uses all of its CPUs: "
            "--threads-per-worker shares them out"
        )
        ray.get(mailbox.post.remote(Note(text)))


def hints(task: Task, networks: Networks, device: torch.device) -> list[str]:
    """What some settings come to here, one line each."""
    found = []
    parts = task.recipe.optimization.accumulate
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    modules = [m for network in networks if network is not None for m in network.modules()]
    if parts > 1 and any(isinstance(module, norms) for module in modules):
        whole = task.plan.batch_size
        found.append(
            f"--accumulate {parts}: batch norm sees {whole // parts} images at a time, so the "
            f"result is not quite that of a batch of {whole} in one"
        )
    if task.workers.is_elastic:
        found.append(
            f"{task.plan.num_workers} workers now, of {task.workers.fewest} to {task.workers.most}"
        )
    least = profile.AFTER + task.profile_steps
    if task.profile_steps and task.plan.steps < least:
        found.append(
            f"--profile-steps {task.profile_steps}: there is no trace of a run of fewer than "
            f"{least} steps, since the first {profile.AFTER} are not traced"
        )
    refused = cuda_graph.why_not_recorded(networks, device)
    if task.compile and refused:
        found.append(f"--compile: compiled, but not recorded as a CUDA graph: {refused}")
    return found


def read_fixed_images(
    task: Task, split: str, count: int, part: tuple[int, int], device: torch.device
) -> validation.FixedImages:
    """This rank's share of the first images of a split."""
    image, bits = stream.read_fixed_images(task.plan, split, count, part)
    row = torch.arange(len(image), device=device) * part[1] + part[0]
    return replace(validation.to_device(image, bits, device), row=row)


def run_steps(
    task: Task,
    networks: Networks,
    optimizers: Optimizers,
    batches: Iterator[stream.Batch],
    reporter: Reporter,
    device: torch.device,
    dtype: torch.dtype,
    start: int,
    stop: StopWatch,
) -> None:
    """The loop. Batch `step` is trained at step `step`, or the run stops.

    It ends before the last step, with a checkpoint, when `stop` asks for it.
    """
    recipe = task.recipe
    take = cuda_graph.make_step(
        networks, optimizers, device,
        network=recipe.network, objective=recipe.objective, dtype=dtype,
    )  # fmt: skip
    profiler = StepProfiler(task.profile_steps if reporter.rank == 0 else 0, device)
    reporter.curves.data_wait.begin()
    # Only a sibling pretext draws on the device.
    seed = None if recipe.network.pretext == INPAINTING else task.plan.seed
    for step, batch in enumerate(device_feed.feed(in_order(batches, start), device, seed), start):
        reporter.curves.data_wait.end()
        stop.enter("step")
        seed_dropout(task.plan.seed, step, reporter.rank)
        rates = training.set_learning_rates(
            optimizers, recipe.learning_rates, recipe.optimization, step, task.plan.steps
        )
        profiler.before_step()
        reporter.add(take(*batch.given))
        if (uri := profiler.after_step(step + 1, task.stage_uri)) is not None:
            reporter.traced(uri)
        done = step + 1
        at_point = done % task.log_every == 0
        stopping = stop.is_requested(at_point=at_point)
        last = done == task.plan.steps
        validating = last or done % task.validate_every == 0
        saving = last or stopping or done % task.checkpoint_every == 0
        # What resumes at a checkpoint knows of the steps before only what is in a point.
        if (
            (saving or at_point)
            and not reporter.log(done, rates)
            # The same on all ranks: gradients are averaged, so all saw the fault.
            and not reporter.roll_back(done, networks, optimizers)
        ):
            seed_dropout(task.plan.seed, step, reporter.rank)
            plain = take.plain if isinstance(take, cuda_graph.GraphedStep) else take
            reporter.blame(step, find_fault(networks, plain, *batch.given))
            break
        stop.enter("other")
        # One in the midst of updates left out would take the place of a good one.
        saving = saving and (last or stopping or reporter.is_finite)
        if validating or saving:
            reporter.settle(networks, optimizers)
        if validating:
            reporter.validate(done, networks, optimizers)
        if saving:
            reporter.checkpoint(done, networks, optimizers)
        if stopping:
            break
        reporter.curves.data_wait.begin()
        stop.enter("data")
    reporter.close()


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

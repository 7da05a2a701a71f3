"""Images per second that a training process takes from the stream, beside the step alone.

$ python -m benchmarks.feed --dataset store/prepare/KEY --side 227 --batch-size 256

One run, interleaved rounds, warm page cache:

- step: our training step on one batch that stays on the device (a mock loader).
- feed: the stream to the device, with nobody to train on it.
- both: the step on what the feed brings, as the pretraining job runs it; with the share of the time
  that the device had no batch.
- bare loop: one process reads, decodes, crops and unpacks; times the cores it is the feed's limit.

The lower of step and limit is what both can reach.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.stream import add_plan_arguments, bare_loop, plan_of
from benchmarks.train_step import wait_for
from ce_model import training
from ce_model.networks import NetworkConfig, build_discriminator, build_generator
from ce_model.training import cuda_graph
from pipelines.data import stream
from pipelines.data.stream_plan import StreamPlan
from pipelines.pretrain import device_feed
from pipelines.pretrain.data_wait import DataWaitClock
from pipelines.pretrain.device_feed import DeviceBatch
from pipelines.runtime import cluster


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, side=227, images=200_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    plan = plan_of(args)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    step = _step(plan, device, compiled=args.compile)
    cores = len(os.sched_getaffinity(0))
    rounds = []
    with cluster.connect():
        for _ in range(args.rounds):
            rounds.append(_round(plan, step, device))
            print(*(f"{name} {value:.3g}" for name, value in rounds[-1]._asdict().items()))
    print(f"{plan.rows} images, {plan.side} px, batch {plan.batch_size}, {cores} cores, {device}")
    alone, fed, both, idle, bare = (
        statistics.median(values) for values in zip(*rounds, strict=True)
    )
    limit = min(alone, cores * bare)
    print(
        f"step {alone:,.0f} images/s, feed {fed:,.0f}, both {both:,.0f} (idle {idle:.0%}); "
        f"bare loop {bare:,.0f} x {cores} cores = {cores * bare:,.0f}\n"
        f"feed / (bare loop x cores) {fed / cores / bare:.2f}, both / min(step, that) "
        f"{both / limit:.2f}"
    )


class Round(NamedTuple):
    """Images per second, and the share of the time that `both` had no batch."""

    step: float
    feed: float
    both: float
    idle: float
    bare_loop: float


def _round(plan: StreamPlan, step: cuda_graph.Step, device: torch.device) -> Round:
    fed = _fed(plan, device)
    batch = DeviceBatch(*(tensor.clone() for tensor in next(fed).given))
    feed_rate, _ = _rate(plan, fed, None, device)
    few = min(plan.steps, 300)
    step_rate, _ = _rate(replace(plan, steps=few), itertools.repeat(batch, few), step, device)
    both, idle = _rate(plan, _fed(plan, device), step, device)
    short = replace(plan, steps=max(1, 4000 // plan.batch_size))
    return Round(step_rate, feed_rate, both, idle, bare_loop(short))


def _fed(plan: StreamPlan, device: torch.device) -> Iterator[DeviceBatch]:
    shard = stream.stream(plan).streaming_split(1, equal=True)[0]
    return device_feed.feed(stream.batches(shard, plan), device)


def _rate(
    plan: StreamPlan,
    batches: Iterator[DeviceBatch],
    step: cuda_graph.Step | None,
    device: torch.device,
) -> tuple[float, float]:
    """Images per second and share of idleness, after the first tenth, which fills the pipeline."""
    skip = plan.steps // 10
    idle = DataWaitClock(device)
    began = 0.0
    count = 0
    for number, batch in enumerate(batches):
        idle.end()
        if number == skip:
            wait_for(device)
            idle.take()
            began = time.perf_counter()
        elif number > skip:
            count += len(batch.image)
        if step is not None:
            step(*batch.given)
        idle.begin()
    wait_for(device)
    elapsed = time.perf_counter() - began
    return count / elapsed, idle.take() / elapsed


def _step(plan: StreamPlan, device: torch.device, *, compiled: bool) -> cuda_graph.Step:
    network = NetworkConfig(preset="alexnet", output="full")
    if plan.side == 128:
        network = NetworkConfig(output="center" if plan.strategy == "central" else "full")
    objective = training.default_objective(network)
    discriminator = None
    if objective.adversarial:
        discriminator = build_discriminator(network).to(device)
    networks = training.Networks(build_generator(network).to(device), discriminator)
    rates = training.default_learning_rates(network, plan.strategy, objective.adversarial)
    optimizers = training.make_optimizers(networks, *rates)
    if compiled:
        for part in networks:
            if part is not None:
                part.compile()
    dtype = training.resolve_precision("auto", device)
    return cuda_graph.make_step(
        networks, optimizers, device, network=network, objective=objective, dtype=dtype
    )


if __name__ == "__main__":
    main()

"""Training steps on one batch in memory, as one of the ranks that torchrun starts.

$ python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.rank_steps

Rank 0 prints one line of JSON. `benchmarks/scale.py` and `benchmarks/ray_overhead.py` start it and
compare; `measure` is also what the latter runs inside Ray Train.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from ce_model import training
from ce_model.masks import Strategy, mask_for
from ce_model.network_config import NetworkConfig, Preset, input_side
from ce_model.networks import build_discriminator, build_generator
from ce_model.training import Networks, cuda_graph

WARM_UP_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every rank does."""

    preset: Preset = "inpaint"
    batch_size: int = 64
    """Images per step of all ranks together."""
    steps: int = 40
    threads: int = 1
    compress: bool = False
    """Gradients are exchanged in bf16."""


def main() -> None:
    """Join the ranks, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    work = work_of(parser.parse_args())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    found = measure(work)
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of `Work`."""
    parser.add_argument("--preset", choices=["inpaint", "alexnet", "unet"], default="inpaint")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compress", action="store_true")


def work_of(args: argparse.Namespace) -> Work:
    """From arguments of `add_arguments`."""
    names = Work.__dataclass_fields__
    return Work(**{name: value for name, value in vars(args).items() if name in names})


def arguments_of(work: Work) -> list[str]:
    """The command line that gives this work."""
    flags = [f"--{name.replace('_', '-')}" for name in asdict(work) if name != "compress"]
    values = [str(value) for name, value in asdict(work).items() if name != "compress"]
    words = [word for pair in zip(flags, values, strict=True) for word in pair]
    return words + (["--compress"] if work.compress else [])


def measure(work: Work) -> dict[str, Any]:
    """Images per second of all ranks, processor time, and what the exchange alone costs.

    Returns:
        images_per_second; cpu_seconds_per_step of this rank; gradient_bytes; all_reduce_seconds:
        one exchange of so many bytes with nothing to compute beside it; loss: of the last step, to
        see that all ways compute the same.
    """
    torch.set_num_threads(work.threads)
    rank, ranks = _place()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    central = work.preset == "inpaint"
    strategy: Strategy = "central" if central else "random_region"
    network = NetworkConfig(preset=work.preset, output="center" if central else "full")
    objective = training.default_objective(network)
    generator = torch.Generator().manual_seed(0)
    built = build_generator(network, generator=generator).to(device)
    judge = None
    if objective.adversarial:
        judge = build_discriminator(network, generator=generator).to(device)
    networks = Networks(built, judge)
    optimizers = training.make_optimizers(networks, 1e-3, 1e-4)
    if ranks > 1:
        for part in networks:
            if part is not None:
                training.synchronise_norms(part)
        networks = Networks(
            _wrap(built, work.compress), None if judge is None else _wrap(judge, work.compress)
        )
    if work.batch_size % ranks:
        raise SystemExit(f"--batch-size is {work.batch_size}; it must be a multiple of {ranks}")
    share = work.batch_size // ranks
    side = input_side(network)
    drawn = np.random.default_rng(0).integers(0, 256, (work.batch_size, side, side, 3), np.uint8)
    masks = [mask_for(0, strategy, side, str(at), 0) for at in range(work.batch_size)]
    mine = slice(rank * share, (rank + 1) * share)
    image = torch.from_numpy(drawn[mine]).to(device)
    hidden = torch.from_numpy(np.stack(masks[mine])).to(device)
    take = cuda_graph.make_step(
        networks, optimizers, device, network=network, objective=objective,
        dtype=training.resolve_precision("auto", device),
    )  # fmt: skip
    began = began_cpu = 0.0
    for step in range(WARM_UP_STEPS + work.steps):
        if step == WARM_UP_STEPS:
            _wait(device)
            began, began_cpu = time.perf_counter(), time.process_time()
        torch.manual_seed(step)
        told = take(image, hidden)
    loss = float(told["loss/joint"])
    elapsed = time.perf_counter() - began
    weights = [p for n in networks if n is not None for p in n.parameters()]
    exchanged = sum(p.numel() for p in weights) * (2 if work.compress else 4)
    return {
        **asdict(work),
        "ranks": ranks,
        "images_per_second": work.batch_size * work.steps / elapsed,
        "cpu_seconds_per_step": (time.process_time() - began_cpu) / work.steps,
        "gradient_bytes": exchanged if ranks > 1 else 0,
        "all_reduce_seconds": _exchange_s(exchanged, work.compress, device) if ranks > 1 else 0.0,
        "loss": loss,
    }


def _place() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def exchange_in_bf16(
    state: None,
    bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """The mean of the gradients of a bucket, sent in bf16; torch's own hook wants NCCL."""
    ranks = torch.distributed.get_world_size()
    small = (bucket.buffer() / ranks).to(torch.bfloat16)
    sent = torch.distributed.all_reduce(small, async_op=True).get_future()

    def widen(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        whole: torch.Tensor = bucket.buffer()
        return whole.copy_(done.value()[0])

    mean: torch.futures.Future[torch.Tensor] = sent.then(widen)
    return mean


def _wrap(network: torch.nn.Module, compress: bool) -> DistributedDataParallel:
    settings: Any = training.ddp_settings()
    wrapped = DistributedDataParallel(network, **settings)
    if compress:
        wrapped.register_comm_hook(None, exchange_in_bf16)
    return wrapped


def _exchange_s(size: int, compress: bool, device: torch.device, rounds: int = 5) -> float:
    """Median seconds of one all-reduce of so many bytes."""
    dtype = torch.bfloat16 if compress else torch.float32
    data = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
    times = []
    for _ in range(rounds):
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(data)
        _wait(device)
        times.append(time.perf_counter() - began)
    return sorted(times)[rounds // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

"""Ranks of a distributed training, as processes of this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(body: Callable[..., None], ranks: int, folder: Path, *more: Any) -> None:
    """`body(rank, *more)` in a process per rank; an error of one is raised here."""
    settings = (body, ranks, str(folder / "ranks"), more)
    torch.multiprocessing.spawn(_rank, settings, nprocs=ranks)


def _rank(rank: int, body: Callable[..., None], ranks: int, store: str, more: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    # What is wrapped in DistributedDataParallel ends with `body`, before its group: freed after it,
    # torch's reducer waits with the GIL for a thread that needs the GIL, now and then for ever.
    body(rank, *more)
    dist.destroy_process_group()

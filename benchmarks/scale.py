"""From 1 worker to more: images per second, bytes and time of the exchange, with and without bf16.

$ python -m benchmarks.scale --batch-size 64 --threads 1 --ranks 2

Ranks are started by torchrun on this machine and train on one batch in memory; the batch of all
ranks stays the same (strong scaling). Rounds alternate. Efficiency is the rate of N ranks over N
times that of one with as many threads each. `waits` is the share of a step that the exchange alone
would take if nothing of it were hidden behind the backward pass.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks.rank_steps import Work, add_arguments, arguments_of, work_of


def main() -> None:
    """Print a line for each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = work_of(args)
    ways = {
        "1 rank": (work, 1),
        f"{args.ranks} ranks": (work, args.ranks),
        f"{args.ranks} ranks, bf16": (replace(work, compress=True), args.ranks),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (each, ranks) in ways.items():
            found[name].append(torchrun(each, ranks))
    alone = statistics.median(one["images_per_second"] for one in found["1 rank"])
    print(f"{work}, {args.rounds} rounds, {os.cpu_count()} CPUs")
    for name, rounds in found.items():
        rate, exchange = (
            statistics.median(one[key] for one in rounds)
            for key in ("images_per_second", "all_reduce_seconds")
        )
        step_s = work.batch_size / rate
        low, high = (pick(one["images_per_second"] for one in rounds) for pick in (min, max))
        print(
            f"{name}: {rate:.2f} images/s ({low:.2f} to {high:.2f}), "
            f"efficiency {rate / alone / rounds[0]['ranks']:.2f}, "
            f"{rounds[0]['gradient_bytes'] / 1e6:.1f} MB per exchange, "
            f"{1000 * exchange:.1f} ms alone, waits at most {exchange / step_s:.1%}, "
            f"loss {rounds[0]['loss']:.6f}"
        )


def torchrun(work: Work, ranks: int) -> dict[str, Any]:
    """One measurement by ranks of their own processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(ranks), "-m", "benchmarks.rank_steps", *arguments_of(work),
    ]  # fmt: skip
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

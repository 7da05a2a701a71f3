"""Step of preset `unet` beside the step of the paper's `inpaint`, in one run, both with their joint
loss on the same 128 px images.

Rounds alternate between the two. Beside the time on the clock stands the time of the processor,
which says more on a machine that others use too.

$ python -m benchmarks.unet_step --rounds 5 --batch-size 16 --threads 2
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from ce_model.masks import Strategy, mask_for
from ce_model.networks import NetworkConfig, build_discriminator, build_generator
from ce_model.training import Networks, Objective, make_optimizers, train_step

SIDE = 128
SETTINGS: dict[str, tuple[NetworkConfig, Objective, Strategy]] = {
    "inpaint": (NetworkConfig(preset="inpaint"), Objective(), "central"),
    "unet": (
        NetworkConfig(preset="unet", output="full", antialias=True),
        Objective(
            reconstruction="l1", adversarial=0.1, overlap=0, start="smooth", feature_matching=2.0
        ),
        "free_form",
    ),
}


def main() -> None:
    """Print images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = {name: _step(name, args.batch_size) for name in SETTINGS}
    for step in steps.values():
        step()
    clock: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            step()
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - began_cpu)
    for name in steps:
        rate = args.batch_size / statistics.median(clock[name])
        cost = 1000 * statistics.median(processor[name]) / args.batch_size
        print(f"{name}: {rate:.1f} images/s on the clock, {cost:.1f} ms of a core per image")
    for what, times in (("clock", clock), ("processor", processor)):
        ratios = [a / b for a, b in zip(times["inpaint"], times["unet"], strict=True)]
        low, high = min(ratios), max(ratios)
        ratio = statistics.median(ratios)
        print(f"by the {what} unet is {ratio:.2f} times as fast ({low:.2f} to {high:.2f})")


def _step(name: str, count: int) -> Callable[[], object]:
    network, objective, strategy = SETTINGS[name]
    networks = Networks(build_generator(network), build_discriminator(network))
    optimizers = make_optimizers(networks, 1e-4, 1e-4)
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8)
    masks = [mask_for(0, strategy, SIDE, str(number), 0) for number in range(count)]
    hidden = torch.from_numpy(np.stack(masks))
    return lambda: train_step(
        networks, optimizers, image, hidden, network=network, objective=objective,
        dtype=torch.float32,
    )  # fmt: skip


if __name__ == "__main__":
    main()

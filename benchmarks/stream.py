"""Pictures per second that the training stream delivers, against its limit and its peers.

$ python -m benchmarks.stream --dataset store/prepare/KEY --side 128 --consumers 1 2

One run, interleaved rounds, warm page cache, the same rows, crop size and holes:

- bare loop: one process reads the row groups, decodes (simplejpeg), crops, unpacks the hole. Times
  the number of cores it is the limit.
- ours: `pipelines.stream` split to W consumers, each of which copies its batches into tensors.
- DataLoader: torch.utils.data.DataLoader over the same JPEGs as files, Pillow, one worker process
  per core, as the public PyTorch ports read pictures.
"""

import argparse
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ce_model import mask_tensors
from pipelines import cluster, dataset, images, stream
from pipelines.stream import StreamPlan

Rate = Callable[[], float]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="URI of a prepared dataset")
    parser.add_argument("--side", type=int, default=128, choices=(128, 227))
    parser.add_argument("--strategy", default="random_region")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--consumers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=12_800, help="pictures per measurement")
    parser.add_argument("--window-rows", type=int, default=stream.WINDOW_ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    plan = StreamPlan(
        uri=args.dataset,
        manifest=dataset.read_manifest(args.dataset),
        strategy=args.strategy,
        side=args.side,
        shorter=0,
        batch_size=args.batch_size,
        num_workers=1,
        steps=args.images // args.batch_size,
        seed=0,
        window_rows=args.window_rows,
    )
    cores = len(os.sched_getaffinity(0))
    with cluster.connected(), tempfile.TemporaryDirectory() as folder:
        loader = make_loader(plan, Path(folder), cores)
        contenders: dict[str, Rate] = {"bare loop, 1 process": lambda: bare_loop(plan)}
        for consumers in args.consumers:
            contenders[f"ours, {consumers} consumers"] = partial(ours, plan, consumers)
        contenders[f"DataLoader, Pillow, {cores} workers"] = lambda: torch_loader(loader, plan)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, measure in contenders.items():
                rates[name].append(measure())
    report(rates, cores, plan)


def report(rates: dict[str, list[float]], cores: int, plan: StreamPlan) -> None:
    """Medians, spreads and ratios."""
    limit = [cores * rate for rate in rates["bare loop, 1 process"]]
    peer = next(values for name, values in rates.items() if name.startswith("DataLoader"))
    print(f"{plan.rows} pictures, {plan.side} px, batch {plan.batch_size}, {cores} cores")
    print(f"{'':34} images/s (min-max)      of bare loop x cores   against DataLoader")
    for name, values in rates.items():
        share = statistics.median(a / b for a, b in zip(values, limit, strict=True))
        against = statistics.median(a / b for a, b in zip(values, peer, strict=True))
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:34} {middle:6.0f} ({low:.0f}-{high:.0f}) {share:18.2f} {against:20.2f}")


def rate(batches: Iterator[int], skip: int) -> float:
    """Pictures per second over all batches but the first `skip`, which fill the pipeline."""
    for _ in itertools.islice(batches, skip):
        pass
    began = time.perf_counter()
    count = sum(batches)
    return count / (time.perf_counter() - began)


def bare_loop(plan: StreamPlan) -> float:
    """Read, decode, crop, unpack in this process, in the order of the file."""
    rng = np.random.default_rng(0)
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)

    def batches() -> Iterator[int]:
        done, slot = 0, 0
        total = plan.steps * plan.batch_size
        pictures = np.empty((plan.batch_size, plan.side, plan.side, 3), np.uint8)
        holes = np.empty((plan.batch_size, plan.side, plan.side), np.uint8)
        for group in itertools.cycle(dataset.row_groups(plan.manifest, "train")):
            table = dataset.read_row_group(plan.uri, group, ["image", spec.column])
            cells = zip(
                dataset.cells(table.column("image")),
                dataset.cells(table.column(spec.column)),
                strict=True,
            )
            for jpeg, mask in cells:
                down, across = rng.random(2)
                picture = images.decode(jpeg)
                pictures[slot] = images.square(picture, plan.side, plan.shorter, down, across)
                bits = np.frombuffer(mask, np.uint8, spec.bytes_per_mask)
                hole = np.unpackbits(bits, count=plan.side**2)
                holes[slot] = hole.reshape(plan.side, plan.side)
                slot = (slot + 1) % plan.batch_size
                done += 1
                if slot == 0:
                    yield plan.batch_size
                if done == total:
                    return

    return rate(batches(), skip=0)


def ours(plan: StreamPlan, consumers: int) -> float:
    """The real stream; a consumer does what a training process does before the device."""

    shared = replace(plan, num_workers=consumers)

    def consume(shard: Any, skip: int) -> tuple[float, float, int]:
        began, count = 0.0, 0
        for number, batch in enumerate(stream.batches(shard, shared)):
            image = torch.tensor(batch["image"])
            mask_tensors.unpack(torch.tensor(batch["mask"]), shared.side)
            if number == skip:
                began = time.time()
            elif number > skip:
                count += len(image)
        return began, time.time(), count

    remote = ray.remote(num_cpus=0)(consume)
    shards = stream.stream(shared).streaming_split(consumers, equal=True)
    skip = 4 * shared.window_batches
    seen = ray.get([remote.remote(shard, skip) for shard in shards])
    began, ended = min(s[0] for s in seen), max(s[1] for s in seen)
    return float(sum(s[2] for s in seen) / (ended - began))


class Files(Dataset[tuple[Tensor, Tensor]]):
    """JPEG files read with Pillow, a random crop and a hole, as the public ports do."""

    def __init__(self, paths: list[Path], masks: list[bytes], plan: StreamPlan) -> None:
        """Keep the paths and the packed masks."""
        self._paths, self._masks, self._side = paths, masks, plan.side
        self._passes = -(-plan.steps * plan.batch_size // len(paths))

    def __len__(self) -> int:
        """Pictures over all passes."""
        return len(self._paths) * self._passes

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture uint8 (S, S, 3) and hole uint8 (S, S)."""
        at = index % len(self._paths)
        with Image.open(self._paths[at]) as opened:
            picture = opened.convert("RGB")
        if min(picture.size) < self._side:
            scale = self._side / min(picture.size)
            width, height = (max(self._side, round(n * scale)) for n in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left = int(torch.randint(picture.width - self._side + 1, ()))
        top = int(torch.randint(picture.height - self._side + 1, ()))
        picture = picture.crop((left, top, left + self._side, top + self._side))
        bits = np.frombuffer(self._masks[at], np.uint8)
        hole = np.unpackbits(bits, count=self._side**2).reshape(self._side, self._side)
        return torch.from_numpy(np.array(picture)), torch.from_numpy(hole)


def make_loader(plan: StreamPlan, folder: Path, cores: int) -> Iterator[Any]:
    """The stored JPEGs as files, and a loader over them that never ends."""
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)
    paths: list[Path] = []
    masks: list[bytes] = []
    for group in dataset.row_groups(plan.manifest, "train"):
        table = dataset.read_row_group(plan.uri, group, ["image", spec.column])
        for row in table.to_pylist():
            paths.append(folder / f"{len(paths):07d}.jpg")
            paths[-1].write_bytes(io.BytesIO(row["image"]).getvalue())
            masks.append(row[spec.column][: spec.bytes_per_mask])
    files = Files(paths, masks, plan)
    loader = DataLoader(
        files, plan.batch_size, shuffle=True, num_workers=cores, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    return itertools.chain.from_iterable(itertools.repeat(loader))


def torch_loader(loader: Iterator[Any], plan: StreamPlan) -> float:
    """As many batches as ours; the worker processes and their queues are warm."""
    batches = (len(image) for image, _ in itertools.islice(loader, plan.steps))
    return rate(batches, skip=4 * plan.window_batches)


if __name__ == "__main__":
    main()

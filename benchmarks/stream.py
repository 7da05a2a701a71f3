"""Images per second that the training stream delivers, against its limit and its peers.

$ python -m benchmarks.stream --dataset store/prepare/KEY --side 128 --consumers 1 2

One run, interleaved rounds, warm page cache, the same rows, crop size and holes:

- bare loop: one process reads the row groups, decodes (simplejpeg), crops, unpacks the hole. Times
  the number of cores it is the limit.
- ours: `pipelines.stream` split to W consumers, each of which copies its batches into tensors.
- DataLoader: torch.utils.data.DataLoader over the same JPEGs as files, Pillow, one worker process
  per core, as the public PyTorch ports read images.
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
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ce_model import mask_tensors
from pipelines.data import images, manifest, shards, stream, stream_plan
from pipelines.data.stream_plan import StreamPlan
from pipelines.runtime import cluster

Rate = Callable[[], float]
Stored = list[tuple[bytes, bytes]]
Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Transform = Callable[[bytes, bytes], Sample]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, side=128, images=12_800)
    parser.add_argument("--consumers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    plan = plan_of(args)
    cores = len(os.sched_getaffinity(0))
    with cluster.connect(), tempfile.TemporaryDirectory() as folder:
        loader = file_loader(
            read_stored(plan), Path(folder), plan, cores, partial(pillow_crop, plan.side)
        )
        contenders: dict[str, Rate] = {"bare loop, 1 process": lambda: bare_loop(plan)}
        for consumers in args.consumers:
            contenders[f"ours, {consumers} consumers"] = partial(ours, plan, consumers)
        contenders[f"DataLoader, Pillow, {cores} workers"] = partial(peer, loader, plan)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, measure in contenders.items():
                rates[name].append(measure())
    report(rates, cores, plan)


def add_plan_arguments(parser: argparse.ArgumentParser, *, side: int, images: int) -> None:
    """What is read, and how."""
    parser.add_argument("--dataset", required=True, help="URI of a prepared dataset")
    parser.add_argument("--side", type=int, default=side, choices=(128, 227))
    parser.add_argument("--strategy", default="random_region")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=images, help="images per measurement")
    parser.add_argument("--window-rows", type=int, default=stream_plan.WINDOW_ROWS)


def plan_of(args: argparse.Namespace) -> StreamPlan:
    """The stream that the arguments ask for, to one consumer."""
    return StreamPlan(
        uri=args.dataset,
        manifest=manifest.read_manifest(args.dataset),
        strategy=args.strategy,
        side=args.side,
        shorter=0,
        batch_size=args.batch_size,
        num_workers=1,
        steps=args.images // args.batch_size,
        seed=0,
        window_rows=args.window_rows,
    )


def report(rates: dict[str, list[float]], cores: int, plan: StreamPlan) -> None:
    """Medians, spreads and ratios."""
    limit = [cores * rate for rate in rates["bare loop, 1 process"]]
    peer = next(values for name, values in rates.items() if name.startswith("DataLoader"))
    print(f"{plan.rows} images, {plan.side} px, batch {plan.batch_size}, {cores} cores")
    print(f"{'':34} images/s (min-max)      of bare loop x cores   against DataLoader")
    for name, values in rates.items():
        share = statistics.median(a / b for a, b in zip(values, limit, strict=True))
        against = statistics.median(a / b for a, b in zip(values, peer, strict=True))
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:34} {middle:6.0f} ({low:.0f}-{high:.0f}) {share:18.2f} {against:20.2f}")


def rate(batches: Iterator[int], skip: int) -> float:
    """Images per second over all batches but the first `skip`, which fill the pipeline."""
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
        squares = np.empty((plan.batch_size, plan.side, plan.side, 3), np.uint8)
        holes = np.empty((plan.batch_size, plan.side, plan.side), np.uint8)
        for group in itertools.cycle(shards.row_groups(plan.manifest, "train")):
            table = shards.read_row_group(plan.uri, group, ["image", spec.column])
            cells = zip(
                shards.cells(table.column("image")),
                shards.cells(table.column(spec.column)),
                strict=True,
            )
            for jpeg, mask in cells:
                down, across = rng.random(2)
                decoded = images.decode(jpeg)
                squares[slot] = images.square(decoded, plan.side, plan.shorter, down, across)
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


def read_stored(plan: StreamPlan) -> Stored:
    """JPEG and packed hole of every training image."""
    spec = plan.manifest.mask_spec(plan.strategy, plan.side)
    stored = []
    for group in shards.row_groups(plan.manifest, "train"):
        table = shards.read_row_group(plan.uri, group, ["image", spec.column])
        for row in table.to_pylist():
            stored.append((row["image"], row[spec.column][: spec.bytes_per_mask]))
    return stored


def pillow_crop(side: int, jpeg: bytes, mask: bytes) -> Sample:
    """Decode with Pillow, crop anywhere, unpack, as the public ports do."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        decoded = opened.convert("RGB")
    if min(decoded.size) < side:
        scale = side / min(decoded.size)
        width, height = (max(side, round(n * scale)) for n in decoded.size)
        decoded = decoded.resize((width, height), Image.Resampling.BILINEAR)
    left = int(torch.randint(decoded.width - side + 1, ()))
    top = int(torch.randint(decoded.height - side + 1, ()))
    return np.array(decoded.crop((left, top, left + side, top + side))), unpacked(mask, side)


def unpacked(mask: bytes, side: int) -> NDArray[np.uint8]:
    """The hole as one byte per pixel: uint8 (S, S)."""
    return np.unpackbits(np.frombuffer(mask, np.uint8), count=side**2).reshape(side, side)


class Files(Dataset[Sample]):
    """JPEG files, several passes long, so that no epoch's end interrupts; masks in memory."""

    def __init__(
        self, paths: list[Path], masks: list[bytes], passes: int, transform: Transform
    ) -> None:
        """Keep what to read."""
        self._paths, self._masks = paths, masks
        self._passes, self._transform = passes, transform

    def __len__(self) -> int:
        """Images over all passes."""
        return len(self._paths) * self._passes

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 (S, S, 3) and hole uint8 (S, S)."""
        at = index % len(self._paths)
        return self._transform(self._paths[at].read_bytes(), self._masks[at])


def file_loader(
    stored: Stored, folder: Path, plan: StreamPlan, cores: int, transform: Transform
) -> Iterator[Any]:
    """The JPEGs as files, and a torch DataLoader over them that never ends."""
    paths = [folder / f"{number:07d}.jpg" for number in range(len(stored))]
    for path, (jpeg, _) in zip(paths, stored, strict=True):
        path.write_bytes(jpeg)
    passes = -(-plan.steps * plan.batch_size // len(stored))
    files = Files(paths, [mask for _, mask in stored], passes, transform)
    return endless(files, plan, cores, shuffle=True)


def endless(
    samples: Dataset[Sample], plan: StreamPlan, cores: int, *, shuffle: bool = False
) -> Iterator[Any]:
    """Batches of a torch DataLoader, epoch after epoch, from the same worker processes."""
    loader = DataLoader(
        samples, plan.batch_size, shuffle=shuffle, num_workers=cores, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    return itertools.chain.from_iterable(itertools.repeat(loader))


def peer(batches: Iterator[Any], plan: StreamPlan) -> float:
    """As many batches as ours; the worker processes and their queues are warm."""
    counted = (len(image) for image, _ in itertools.islice(batches, plan.steps))
    return rate(counted, skip=4 * plan.window_batches)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Shuffled, decoded crops with holes for a training process: ours beside the usual loaders.

$ pip install -e '.[bench]' && python -m benchmarks.loader --dataset store/prepare/KEY --side 227

One run, interleaved rounds, warm page cache. Every contender delivers the same JPEGs of a prepared
dataset through the same decoder and crop (`pipelines.images`, simplejpeg), each with its hole as
one byte per pixel, to one training process, and has as many worker processes as there are cores:

- bare loop: one process, in the order of the file; times the cores it is the limit.
- ours: the training stream, one consumer.
- DataLoader: torch's, over JPEG files, as ImageFolder reads them, masks in memory.
- WebDataset: tar shards of 1,000 images, shards resampled, a shuffle buffer of 1,000.
- Streaming: MosaicML's MDS shards, py1e shuffle.

Then the processor time per image of what runs inside a data task, against the bare loop, and
where the processor time of ours goes, by kind of process.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.stream import (
    Rate,
    Sample,
    Stored,
    Transform,
    add_plan_arguments,
    bare_loop,
    endless,
    file_loader,
    ours,
    peer,
    plan_of,
    read_stored,
    unpacked,
)
from pipelines.data import images, stream, stream_plan
from pipelines.data.stream_plan import StreamPlan
from pipelines.runtime import cluster

SHARD_IMAGES = 1000
SHUFFLE_BUFFER = 1000
OF_DATALOADER, OF_BARE_CPU = 0.9, 1.15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_plan_arguments(parser, side=227, images=48_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    plan = plan_of(args)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, cluster.connect():
        stored, crop = read_stored(plan), partial(fast_crop, plan.side)
        contenders: dict[str, Rate] = {
            "bare loop": partial(bare_loop, plan),
            "ours": partial(ours, plan, 1),
        }
        for name, make in PEERS.items():
            place = Path(folder) / name
            place.mkdir()
            contenders[name] = partial(peer, make(stored, place, plan, cores, crop), plan)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, measure in contenders.items():
                rates[name].append(measure())
        report(rates, cores, plan)
        report_cpu(*[
            [measure(plan) for _ in range(args.rounds)] for measure in (bare_cpu, task_cpu)
        ])  # fmt: skip
        with CpuByProcess() as used:
            speed = ours(plan, 1)
        print(f"\nwhere the processor time goes at {speed:.0f} images/s, cores in use:")
        for kind, share in used.shares.most_common():
            print(f"{share:7.2f}  {kind}")


def report(rates: dict[str, list[float]], cores: int, plan: StreamPlan) -> None:
    """Medians, spreads and ratios to ours and to the limit, with the verdict."""
    print(f"{plan.rows} images, {plan.side} px, batch {plan.batch_size}, {cores} cores")
    print(f"{'':14} images/s (min-max)   of bare loop x cores   ours against it")
    ratios = {}
    for name, values in rates.items():
        limit = [cores * rate for rate in rates["bare loop"]]
        share = statistics.median(a / b for a, b in zip(values, limit, strict=True))
        ratios[name] = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:14} {middle:6.0f} ({low:.0f}-{high:.0f}) {share:16.2f} {ratios[name]:16.2f}")
    wanted = {"DataLoader": OF_DATALOADER, "WebDataset": 1.0, "Streaming": 1.0}
    for name, least in wanted.items():
        verdict = "met" if ratios[name] >= least else "NOT met"
        print(f"ours / {name}: {ratios[name]:.2f} (target {least}: {verdict})")


def report_cpu(bare: list[float], task: list[float]) -> None:
    """Processor time per image inside a data task."""
    ratio = statistics.median(b / a for a, b in zip(bare, task, strict=True))
    verdict = "met" if ratio <= OF_BARE_CPU else "NOT met"
    print(
        f"\nprocessor time per image: bare loop {1e6 * statistics.median(bare):.0f} us, data "
        f"task {1e6 * statistics.median(task):.0f} us, ratio {ratio:.2f} "
        f"(target at most {OF_BARE_CPU}: {verdict})"
    )


def fast_crop(side: int, jpeg: bytes, mask: bytes) -> Sample:
    """Decode as ours does, crop anywhere, unpack."""
    down, across = torch.rand(2).tolist()
    image = images.square(images.decode(jpeg), side, 0, down, across)
    return image, unpacked(mask, side)


def tar_loader(
    stored: Stored, folder: Path, plan: StreamPlan, cores: int, transform: Transform
) -> Iterator[Any]:
    """WebDataset over tar shards; batches are made in the workers, as its manual says."""
    import webdataset

    with webdataset.ShardWriter(
        str(folder / "%06d.tar"), maxcount=SHARD_IMAGES, verbose=0
    ) as writer:
        for number, (jpeg, mask) in enumerate(stored):
            writer.write({"__key__": f"{number:07d}", "jpg": jpeg, "mask": mask})

    def one(sample: dict[str, bytes]) -> Sample:
        return transform(sample["jpg"], sample["mask"])

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    samples = (
        webdataset.WebDataset(shards, resampled=True)
        .shuffle(SHUFFLE_BUFFER)
        .map(one)
        .batched(plan.batch_size, partial=False)
    )
    loader = webdataset.WebLoader(
        samples, batch_size=None, num_workers=cores, persistent_workers=True
    )
    return iter(loader)


def mds_loader(
    stored: Stored, folder: Path, plan: StreamPlan, cores: int, transform: Transform
) -> Iterator[Any]:
    """MosaicML Streaming over MDS shards, epoch after epoch."""
    streaming = streaming_base()
    columns = {"image": "bytes", "mask": "bytes"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for jpeg, mask in stored:
            writer.write({"image": jpeg, "mask": mask})

    class Shards(streaming.StreamingDataset):  # type: ignore[name-defined,misc]
        def __getitem__(self, at: int) -> Sample:
            sample = super().__getitem__(at)
            return transform(sample["image"], sample["mask"])

    shards = Shards(local=str(folder), shuffle=True, batch_size=plan.batch_size)
    return endless(shards, plan, cores)


def streaming_base() -> types.ModuleType:
    """`streaming.base`, without `streaming` itself, which imports torchvision first of all."""
    found = importlib.util.find_spec("streaming")
    if found is None or found.submodule_search_locations is None:
        sys.exit("MosaicML Streaming is not installed: pip install -e '.[bench]'")
    package = types.ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["streaming"] = package
    return importlib.import_module("streaming.base")


PEERS = {"DataLoader": file_loader, "WebDataset": tar_loader, "Streaming": mds_loader}


def bare_cpu(plan: StreamPlan) -> float:
    """Processor seconds per image of the bare loop."""
    began = time.process_time()
    bare_loop(plan)
    return (time.process_time() - began) / (plan.steps * plan.batch_size)


def task_cpu(plan: StreamPlan) -> float:
    """Processor seconds per image of what a data task does: windows read, shuffled, decoded."""
    began = time.process_time()
    count = 0
    for window in stream_plan.windows(plan):
        for batch in stream.read_window(plan, window):
            count += len(batch["row"])
    return (time.process_time() - began) / count


class CpuByProcess:
    """Processor time of this process and of all its children, by kind, while a block runs."""

    def __enter__(self) -> "CpuByProcess":
        """Start looking, once a second."""
        self.shares: Counter[str] = Counter()  # cores in use
        self._seconds: dict[int, tuple[float, float]] = {}
        self._titles: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Sum up."""
        self._stop.set()
        self._thread.join()
        elapsed = time.perf_counter() - self._began
        for process, (first, last) in self._seconds.items():
            share = (last - first) / elapsed
            if share > 0.005:
                self.shares.update({self._titles[process]: share})

    def _look(self) -> None:
        me = psutil.Process()
        while True:
            for process in [me, *me.children(recursive=True)]:
                try:
                    times, title = process.cpu_times(), _title(process)
                except psutil.Error:
                    continue  # it has ended meanwhile
                seconds = times.user + times.system
                first = self._seconds.get(process.pid, (seconds, seconds))[0]
                self._seconds[process.pid] = (first, seconds)
                if process.pid not in self._titles or "IDLE" not in title:
                    self._titles[process.pid] = title
            if self._stop.wait(1.0):
                return


def _title(process: psutil.Process) -> str:
    words: list[str] = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").split("(")[0].split(" ")[0]
    if process.pid == os.getpid():
        return "driver"
    scripts = [Path(word).name for word in words[:4] if not word.startswith("-")]
    return scripts[1] if len(scripts) > 1 and scripts[0].startswith("python") else scripts[0]


if __name__ == "__main__":
    main()

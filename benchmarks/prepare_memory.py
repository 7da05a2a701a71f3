#!/usr/bin/env python3
"""Peak memory of `prepare`, of the driver and of the largest worker, for sources of several sizes.

Every source is prepared by a process and a local cluster of its own, because a driver keeps about
10 MB of each job that it ran before, whatever its size. Resident memory is looked at five times a
second, without the pages that belong to files and to the object store: a reader maps shards into
its memory, and the system takes those pages back when it needs them.

$ python -m benchmarks.prepare_memory --sources photos_4000 photos_32000 --rounds 2
"""

import argparse
import multiprocessing
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.data.manifest import read_manifest
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.runtime import cluster


@dataclass
class Peak:
    """Largest memory, bytes."""

    driver: int = 0
    worker: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Largest memory of this process and of any of its Ray workers, while the block runs."""
    peak, stop = Peak(), threading.Event()
    thread = threading.Thread(target=_look, args=(peak, stop))
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _look(peak: Peak, stop: threading.Event) -> None:
    me = psutil.Process()
    while not stop.wait(0.2):
        peak.driver = max(peak.driver, _own(me))
        for child in me.children(recursive=True):
            try:
                if any("ray::" in word for word in child.cmdline()[:1]):
                    peak.worker = max(peak.worker, _own(child))
            except psutil.Error:
                continue  # it has ended meanwhile


def _own(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def measure(source: str, folder: str, rows_per_shard: int) -> tuple[int, int, int]:
    """Images, and bytes of the driver and of the largest worker; in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as output, cluster.connect():
        requested = PrepareConfig(
            source=source, output=f"{output}/d", sides=(227,), rows_per_shard=rows_per_shard
        )
        with peak_memory() as peak:
            uri = prepare_dataset(requested)
        return read_manifest(uri).listed, peak.driver, peak.worker


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sources", nargs="+", required=True, help="as for jobs/prepare.py")
    parser.add_argument("--folder", type=Path, help="where the datasets go meanwhile")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows-per-shard", type=int, default=PrepareConfig.rows_per_shard)
    args = parser.parse_args()
    folder = str(args.folder or tempfile.gettempdir())
    context = multiprocessing.get_context("spawn")
    lines = []
    for _ in range(args.rounds):
        for source in args.sources:
            with ProcessPoolExecutor(1, context) as process:
                measured = process.submit(measure, source, folder, args.rows_per_shard)
                count, driver, worker = measured.result()
            lines.append(
                f"{count:9,} images: driver {driver / 1e6:4,.0f} MB, largest worker "
                f"{worker / 1e6:4,.0f} MB"
            )
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()

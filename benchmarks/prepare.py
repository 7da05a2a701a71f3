#!/usr/bin/env python3
"""The whole prepare job against the bare codec on as many cores, and its growth.

    bare    one process per core: read the file, libjpeg-turbo decode, OpenCV resize, encode
    job     `prepare` on a running local cluster: list, validate, shuffle, masks of three
            strategies at 227 px with 2 variants, Parquet, checksums, fsync, card, commit

Both read the same files, page cache warm. `bare` writes nothing. Rounds are interleaved; a small
job before each timed one starts Ray's workers, which end when they are idle for a second.
With --peers also what a user would take instead, in the same rounds (see `prepare_peers`).

$ python -m benchmarks.prepare --images data/pretrain_A/train --resize-to 500 375 --count 4000
$ pip install -e '.[bench]' && python -m benchmarks.prepare ... --peers
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import psutil

from benchmarks.decode_core import bare, load
from benchmarks.prepare_peers import PEERS, seconds_of
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.runtime import cluster

TARGET, LARGE_TARGET, GROWTH = 0.5, 0.6, 4  # job / bare of the source, and of the larger one
SETTLE_S = 5.0  # after a job Ray ends idle workers, which would slow the bare loop by a fifth
WARM_UP = 1000  # images: several units, so that every worker gets one


def bare_files(files: list[Path]) -> None:
    """One process of the bare loop."""
    for file in files:
        bare(file.read_bytes())


def time_bare(files: list[Path], cores: int) -> float:
    """Seconds of the bare loop on all cores."""
    context = multiprocessing.get_context("fork")
    parts = [context.Process(target=bare_files, args=(files[n::cores],)) for n in range(cores)]
    began = time.perf_counter()
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    return time.perf_counter() - began


def time_job(source: Path, folder: Path) -> float:
    """Seconds of the whole job, cluster start not counted."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        began = time.perf_counter()
        prepare_dataset(PrepareConfig(source=str(source), output=f"{output}/d", sides=(227,)))
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", type=int, default=GROWTH, help="size of the larger source")
    parser.add_argument("--resize-to", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--peers", action="store_true", help="time datasets.map and MDSWriter, too")
    args = parser.parse_args()
    cv2.setNumThreads(1)  # before a fork: a child that ends OpenCV's threads hangs
    cores = psutil.cpu_count() or 1
    size = (args.resize_to[0], args.resize_to[1]) if args.resize_to else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = load(args.images, args.count, size)
        sources = write_sources(folder, images, args.count, args.growth)
        files = sorted(sources[1].rglob("*.jpg"))
        rounds: list[tuple[float, float]] = []
        peers: dict[str, list[float]] = {name: [] for name in (PEERS if args.peers else ())}
        with cluster.connect():
            for _ in range(args.rounds):
                time.sleep(SETTLE_S)
                bare_s = time_bare(files, cores)
                time_job(sources[0], folder)
                job_s = time_job(sources[1], folder)
                rounds.append((bare_s, job_s))
                time.sleep(SETTLE_S if peers else 0)
                for name, taken in peers.items():
                    with tempfile.TemporaryDirectory(dir=folder) as output:
                        taken.append(seconds_of(PEERS[name], files, Path(output), cores))
            large_s = time_job(sources[args.growth], folder) if args.growth > 1 else None
    report(len(files), cores, rounds, large_s, args.growth)
    report_peers(len(files), [job for _, job in rounds], peers)


def write_sources(folder: Path, images: list[bytes], count: int, growth: int) -> dict[int, Path]:
    """Flat folders of WARM_UP (0), `count` (1) and `growth` times as many images.

    Where there are fewer, the same come again, each time with other bytes.
    """
    sizes = {0: min(WARM_UP, count), 1: count, growth: growth * count}
    places = {times: folder / f"x{times}" for times in sizes}
    for times, place in places.items():
        place.mkdir()
        for number in range(sizes[times]):
            data = made_unique(images[number % len(images)], number)
            (place / f"{number:06}.jpg").write_bytes(data)
    return places


def made_unique(jpeg: bytes, number: int) -> bytes:
    """A comment makes the bytes differ, not the image."""
    return jpeg[:2] + b"\xff\xfe\x00\x0e" + f"{number:012}".encode() + jpeg[2:]


def report(
    count: int, cores: int, rounds: list[tuple[float, float]], large_s: float | None, growth: int
) -> None:
    """Print ratios and rates."""
    bare_s, job_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(bare / job for bare, job in rounds)
    print(f"{count} images, {cores} cores")
    print(f"bare {count / bare_s:8,.0f} images/s ({bare_s:.2f} s)")
    print(f"job  {count / job_s:8,.0f} images/s ({job_s:.2f} s)")
    print(f"job / bare x cores: {ratio:.2f} (target {TARGET}: {verdict(ratio >= TARGET)})")
    if large_s is None:
        return
    large, times = growth * bare_s / large_s, large_s / job_s
    print(
        f"job of {growth * count} / bare x cores: {large:.2f} (target {LARGE_TARGET}: "
        f"{verdict(large >= LARGE_TARGET)})"
    )
    linear = verdict(abs(times / growth - 1) <= 0.1 or times < growth)
    print(f"{growth}x images take {times:.2f}x the time (target {growth} within 10%: {linear})")


def report_peers(count: int, jobs: list[float], peers: dict[str, list[float]]) -> None:
    """Print what the job is ahead of."""
    for name, taken in peers.items():
        ahead = statistics.median(peer / job for peer, job in zip(taken, jobs, strict=True))
        rate = count / statistics.median(taken)
        print(
            f"{name:13} {rate:8,.0f} images/s ({statistics.median(taken):.2f} s): the job takes "
            f"1/{ahead:.2f} of its time (target ahead: {verdict(ahead > 1)})"
        )


def verdict(is_met: bool) -> str:
    """Of a target."""
    return "met" if is_met else "NOT met"


if __name__ == "__main__":
    main()

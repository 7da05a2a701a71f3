"""Epochs over a dataset in a bucket, with and without a cache of shards on the node's disk.

$ python -m benchmarks.shard_cache --dataset store/prepare/KEY --folder FOLDER

Copies the training shards to an S3 server on loopback (moto, a process of its own that counts
requests and bytes), then reads the windows of all epochs in one process, decoding included, as a
data task does, round by round:

- bucket: no cache, every epoch reads the bucket.
- cache: empty at first; row groups come from the bucket while a thread fetches whole files.
- whole files first: every file of the dataset is fetched before the first batch.
- warm: a second command, which finds the files and verifies them.
- half: the limit is half of the dataset.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from pipelines import storage
from pipelines.data import manifest, shards, stream, stream_plan
from pipelines.data.stream_plan import StreamPlan
from pipelines.storage import CacheSettings, file_cache

BUCKET = "benchmark"


@dataclass
class Counted:
    """What an epoch cost."""

    seconds: float
    first_batch_s: float
    requests: int
    bytes: int


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--folder", required=True, help="for the cache; emptied")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--strategy", default="random_region")
    parser.add_argument("--window-rows", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    server.start()
    try:
        os.environ.update(ours.recv())
        uri = upload(args.dataset)
        plan = plan_of(uri, args)
        kinds: dict[str, list[list[Counted]]] = {}
        for _ in range(args.rounds):
            for name, epochs in measure(plan, args.folder, ours, args.epochs):
                kinds.setdefault(name, []).append(epochs)
        report(plan, kinds)
    finally:
        server.terminate()
        server.join()
        empty(args.folder)


def serve(pipe: Connection) -> None:
    """The server; answers anything with the requests and bytes so far."""
    from benchmarks.s3_server import serving

    with serving() as server:
        names = [name for name in os.environ if name.startswith("AWS_")]
        pipe.send({name: os.environ[name] for name in names})
        while pipe.recv():
            pipe.send((sum("GET" in each for each in server.requests), server.sent))


def upload(dataset: str) -> str:
    """Copy the manifest and the training shards to the bucket."""
    uri = f"s3://{BUCKET}/dataset"
    storage.filesystem(uri)[0].mkdir(BUCKET)
    described = manifest.read_manifest(dataset)
    for path in (manifest.MANIFEST, *(wanted.uri for wanted in files_of(described))):
        storage.publish(storage.join(uri, path), storage.read_bytes(storage.join(dataset, path)))
    return uri


def files_of(described: manifest.Manifest) -> Iterator[storage.Wanted]:
    """Training shards and their sidecars, with their paths inside the dataset."""
    for file in described.splits["train"]:
        yield storage.Wanted(file.path, file.bytes, file.sha256)
        for each in file.sidecars:
            yield storage.Wanted(each.path, each.bytes, each.sha256)


def plan_of(uri: str, args: argparse.Namespace) -> StreamPlan:
    """The stream without a cache."""
    described = manifest.read_manifest(uri)
    batch = 64
    return StreamPlan(
        uri=uri,
        manifest=described,
        strategy=args.strategy,
        side=args.side,
        shorter=0,
        batch_size=batch,
        num_workers=1,
        steps=described.rows("train") // batch * args.epochs,
        seed=0,
        window_rows=args.window_rows,
    )


def measure(
    plan: StreamPlan, folder: str, pipe: Connection, epochs: int
) -> Iterable[tuple[str, list[Counted]]]:
    """One round, each kind once."""
    held = sum(file.bytes for file in plan.manifest.splits["train"])
    group = plan.manifest.fingerprint[:16]
    settings = CacheSettings(folder=folder, limit_bytes=2 * held, group=group)
    cached = replace(plan, cache=settings)
    half = replace(plan, cache=replace(settings, limit_bytes=held // 2))
    yield "bucket", run(plan, pipe, epochs)
    empty(folder)
    yield "cache", run(cached, pipe, epochs)
    yield "warm", run(cached, pipe, epochs)
    empty(folder)
    yield "whole files first", run(cached, pipe, epochs, before=fetch_all)
    empty(folder)
    yield "half", run(half, pipe, epochs)


def empty(folder: str) -> None:
    """Remove what a cache keeps there."""
    shutil.rmtree(Path(folder, file_cache.ROOT), ignore_errors=True)


def fetch_all(plan: StreamPlan) -> None:
    """Every training shard and its sidecars."""
    assert plan.cache is not None
    cache = file_cache.opened(plan.cache)
    for wanted in files_of(plan.manifest):
        cache.fetch(wanted._replace(uri=storage.join(plan.uri, wanted.uri)))


def run(
    plan: StreamPlan,
    pipe: Connection,
    epochs: int,
    before: Callable[[StreamPlan], None] | None = None,
) -> list[Counted]:
    """All epochs, as a process that has just started reads them."""
    shards._open.cache_clear()
    file_cache.opened.cache_clear()
    found = []
    windows = list(stream_plan.windows(plan))
    for epoch in range(epochs):
        requests, sent = asked(pipe)
        began = time.perf_counter()
        first = None
        if epoch == 0 and before is not None:
            before(plan)
        for window in windows:
            if window.epoch == epoch:
                for _ in stream.read_window(plan, window):
                    first = first or time.perf_counter() - began
        seconds = time.perf_counter() - began
        if epoch == 0 and plan.cache is not None:  # what the thread still fetches is of this epoch
            wait_for_thread(file_cache.opened(plan.cache))
        after = asked(pipe)
        assert first is not None
        found.append(Counted(seconds, first, after[0] - requests, after[1] - sent))
    if plan.cache is not None:
        file_cache.opened(plan.cache).close()
    return found


def wait_for_thread(cache: storage.FileCache) -> None:
    """Until nothing is being fetched."""
    while cache._queued:
        time.sleep(0.01)


def asked(pipe: Connection) -> tuple[int, int]:
    """Requests and bytes of the server so far."""
    pipe.send(True)
    found: tuple[int, int] = pipe.recv()
    return found


def report(plan: StreamPlan, kinds: dict[str, list[list[Counted]]]) -> None:
    """Medians over the rounds."""
    files = plan.manifest.splits["train"]
    held = sum(file.bytes for file in files)
    images = plan.steps_per_epoch * plan.batch_size
    print(
        f"{plan.rows} images, {len(files)} shards of {held / 1e6:.1f} MB together, windows of "
        f"{plan.window_rows}, one process"
    )
    print(f"{'':18} epoch   images/s   of bucket   first batch s   GETs   MB from the bucket")
    for name, rounds in kinds.items():
        for epoch in (0, 1):
            for_bucket = [each[epoch].seconds for each in kinds["bucket"]]
            mine = [each[min(epoch, len(each) - 1)] for each in rounds]
            rate = statistics.median(images / each.seconds for each in mine)
            ratio = statistics.median(
                b / each.seconds for b, each in zip(for_bucket, mine, strict=True)
            )
            first = statistics.median(each.first_batch_s for each in mine)
            requests = statistics.median(each.requests for each in mine)
            sent = statistics.median(each.bytes for each in mine) / 1e6
            print(
                f"{name:18} {epoch + 1:5} {rate:10.0f} {ratio:11.2f} {first:15.2f} "
                f"{requests:6.0f} {sent:20.1f}"
            )


if __name__ == "__main__":
    main()

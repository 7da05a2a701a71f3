"""Training from a cache of shards: the same batches, read from the bucket once."""

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from s3_helpers import place

from benchmarks.s3_server import FaultyServer
from pipelines import storage
from pipelines.data import shards, stream, stream_plan
from pipelines.data.manifest import Manifest, ShardFile, Sidecar, read_manifest
from pipelines.data.stream import Batch
from pipelines.data.stream_plan import StreamPlan
from pipelines.pretrain import run
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import pretrain_key
from pipelines.pretrain.messages import DataRead
from pipelines.pretrain.worker import _tell_reads
from pipelines.runtime.mailbox import create_mailbox
from pipelines.storage import CacheSettings, file_cache

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """No cache and no open shard of the test before."""
    shards._open.cache_clear()
    file_cache.opened.cache_clear()


@pytest.fixture
def remote(s3: FaultyServer, dataset_uri: str) -> str:
    """The dataset in a bucket, its masks in sidecars as `prepare` adds them later."""
    for path in Path(dataset_uri).rglob("*"):
        if path.is_file():
            name = str(path.relative_to(dataset_uri))
            storage.publish(storage.join(place("d"), name), path.read_bytes())
    return place("d")


def plan_of(uri: str, folder: Path | None, limit: int = 10**9) -> StreamPlan:
    manifest = read_manifest(uri)
    cache = None
    if folder is not None:
        cache = CacheSettings(folder=str(folder), limit_bytes=limit, group=manifest.fingerprint)
    return StreamPlan(
        uri=uri, manifest=manifest, strategy="random_block", side=128, shorter=0, batch_size=8,
        num_workers=2, steps=54, seed=3, window_rows=40, cache=cache,
    )  # fmt: skip


def batches(plan: StreamPlan, start_step: int = 0) -> list[Batch]:
    found = []
    for window in stream_plan.windows(plan):
        if window.first_step >= start_step:
            found += list(stream.read_window(plan, window))
    return found


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def fetch_all(plan: StreamPlan) -> None:
    assert plan.cache is not None
    cache = file_cache.opened(plan.cache)
    for file in plan.manifest.splits["train"]:
        for part in (file, *file.sidecars):
            assert cache.fetch(
                storage.Wanted(storage.join(plan.uri, part.path), part.bytes, part.sha256)
            )


def shard_gets(server: FaultyServer) -> int:
    return sum("GET" in request and ".parquet" in request for request in server.requests)


@pytest.mark.parametrize("size", [0, 40_000, 10**9])  # nothing, a part and all of it fits
def test_batches_are_the_same_with_a_cache_of_any_size(
    remote: str, tmp_path: Path, size: int
) -> None:
    expected = batches(plan_of(remote, None))
    plan = plan_of(remote, tmp_path, size)
    assert_equal(batches(plan), expected)
    file_cache.opened.cache_clear()  # as after a restart: resumed, from what is there by now
    at = stream_plan.window(plan, 4).first_step
    assert_equal(batches(plan, at), [b for b in expected if b["step"][0] >= at])


def test_later_epochs_read_nothing_from_the_bucket(
    s3: FaultyServer, remote: str, tmp_path: Path
) -> None:
    plan = plan_of(remote, tmp_path)
    fetch_all(plan)
    assert plan.cache is not None
    cache = file_cache.opened(plan.cache)
    cache.take()
    s3.requests.clear()
    batches(plan)
    use, warnings = cache.take()
    assert shard_gets(s3) == 0
    assert (use.misses, use.store_bytes, warnings) == (0, 0, ())
    assert use.hits >= 3 * sum(len(f.row_groups) for f in plan.manifest.splits["train"])
    s3.requests.clear()
    batches(plan_of(remote, None))
    assert shard_gets(s3) > 3


def test_sidecars_are_kept_too(s3: FaultyServer, remote: str, tmp_path: Path) -> None:
    manifest = with_masks_beside(remote, read_manifest(remote))
    plan = replace(plan_of(remote, tmp_path), manifest=manifest)
    fetch_all(plan)
    s3.requests.clear()
    assert_equal(batches(plan), batches(plan_of(remote, None)))
    assert not [request for request in s3.requests if "masks-" in request]


def with_masks_beside(uri: str, manifest: Manifest) -> Manifest:
    """The same dataset with its mask columns in files of their own."""

    def split(file: ShardFile) -> ShardFile:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, file.path))))
        names = tuple(name for name in table.column_names if name.startswith("mask_"))
        out = io.BytesIO()
        pq.write_table(table.select(names), out, row_group_size=file.row_groups[0])
        data, path = out.getvalue(), file.path.replace(".parquet", ".masks-1.parquet")
        storage.publish(storage.join(uri, path), data)
        beside = Sidecar(
            path=path, columns=names, bytes=len(data), sha256=storage.sha256_of_bytes(data)
        )
        return replace(file, sidecars=(beside,))

    train = tuple(split(file) for file in manifest.splits["train"])
    return replace(manifest, splits={**manifest.splits, "train": train})


def test_a_file_that_is_cut_or_removed_while_it_is_used_is_read_from_the_bucket(
    remote: str, tmp_path: Path
) -> None:
    expected = batches(plan_of(remote, None))
    plan = plan_of(remote, tmp_path)
    fetch_all(plan)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:-9])
    assert_equal(batches(plan), expected)
    assert plan.cache is not None
    _, warnings = file_cache.opened(plan.cache).take()
    assert len(warnings) == 1 and "was damaged in the cache" in warnings[0]


def test_the_stream_on_ray_counts_what_it_reads(
    ray_cluster: None, remote: str, tmp_path: Path
) -> None:
    plan = replace(plan_of(remote, tmp_path), num_workers=1)
    fetch_all(plan)
    mailbox = create_mailbox()
    tell: Any = lambda *found: _tell_reads(mailbox, *found)  # noqa: E731
    for _ in stream.batches(stream.stream(plan, tell_reads=tell), plan):
        pass
    posted: list[Any] = []
    deadline = time.monotonic() + 60
    while len(posted) < stream_plan.num_windows(plan):  # tasks post and do not wait
        assert time.monotonic() < deadline
        posted += ray.get(mailbox.drain.remote())
        time.sleep(0.05)
    assert all(isinstance(message, DataRead) and not message.warnings for message in posted)
    assert sum(message.use.hits for message in posted) >= len(posted)
    assert sum(message.use.misses for message in posted) == 0


def test_a_cache_is_told_and_in_no_key_and_a_local_dataset_needs_none(
    dataset_uri: str, remote: str
) -> None:
    config = PretrainConfig(cache_folder="/fast", cache_gb=0.01, batch_size=8, shorter=0)
    recipe = run.resolve_recipe(config)
    local = run._plan(config, recipe, dataset_uri, read_manifest(dataset_uri))
    assert local.cache is None
    assert "--cache-folder /fast is not used" in run._describe_cache("/fast", local)
    manifest = read_manifest(remote)
    plan = run._plan(config, recipe, remote, manifest)
    plain = replace(config, cache_folder=None, cache_gb=None)
    assert pretrain_key(config, manifest) == pretrain_key(plain, manifest)
    assert run._plan(plain, recipe, remote, manifest) == replace(plan, cache=None)
    assert plan.cache is not None and plan.cache.limit_bytes == 10**7
    assert plan.cache.group == plan.manifest.fingerprint[:16]
    shown = run._describe_cache("/fast", plan)
    assert "shards are kept in /fast of each node: at most 0.01 GB" in shown

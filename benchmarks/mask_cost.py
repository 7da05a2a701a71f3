#!/usr/bin/env python3
"""What the masks cost `prepare`: their share of its processor time and of its bytes.

The job's own two functions (`gather`, `write_shard`) run in this process on one core, on images
at ImageNet's usual 500x375, with all three strategies at 227 px, 2 variants each; then the masks
of the same keys are drawn alone, a column at a time as in the job.

$ python -m benchmarks.mask_cost --images data/pretrain_A/train --resize-to 500 375
"""

import os

if __name__ == "__main__":  # as Ray sets it for a task of one core; before NumPy reads it
    os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import pyarrow.parquet as pq

from benchmarks.decode_core import LIMITS, load
from pipelines.data import manifest
from pipelines.prepare import fault_budget, ingest, plan, shards
from pipelines.prepare.draw import Draw
from pipelines.prepare.held import HeldImages, write_held
from pipelines.prepare.ingest import Shuffle
from pipelines.prepare.sources import listing
from pipelines.runtime import malloc

TARGET = 0.15
SEED = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--resize-to", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    size = (args.resize_to[0], args.resize_to[1]) if args.resize_to else None
    masks = manifest.default_masks((227,), variants=2)
    with tempfile.TemporaryDirectory() as folder:
        source, uri = Path(folder, "source"), Path(folder, "dataset")
        source.mkdir()
        for number, data in enumerate(load(args.images, args.count, size)):
            (source / f"{number:05}.jpg").write_bytes(data)
        keys = sorted(path.name for path in source.iterdir())
        shards.mask_cell(SEED, masks[-1], "warm-up")
        job_s = prepare_here(source, str(uri), masks)
        began = time.process_time()
        for spec in masks:
            for key in keys:
                shards.mask_cell(SEED, spec, key)
        masks_s = time.process_time() - began
        sizes: Counter[str] = Counter()
        for path in uri.rglob("*.parquet"):
            group = pq.read_metadata(path).row_group(0)
            for column in map(group.column, range(group.num_columns)):
                sizes[column.path_in_schema] += column.total_compressed_size
    print(f"{len(keys)} images, {job_s / len(keys) * 1e6:,.0f} us of one core each")
    mask_bytes = sum(held for name, held in sizes.items() if name.startswith("mask_"))
    for what, part, whole, unit in (
        ("time", masks_s / len(keys) * 1e6, job_s / len(keys) * 1e6, "us"),
        ("bytes", mask_bytes / len(keys), sizes.total() / len(keys), "bytes"),
    ):
        verdict = "met" if part / whole <= TARGET else "NOT met"
        print(
            f"masks take {part:,.0f} of {whole:,.0f} {unit} per image: {part / whole:.1%} of the "
            f"job's {what} (target at most {TARGET:.0%}: {verdict})"
        )


def prepare_here(source: Path, uri: str, masks: tuple[manifest.MaskSpec, ...]) -> float:
    """Both passes in this process; returns their processor time, s."""
    cv2.setNumThreads(1)
    malloc.keep_freed_memory()  # as in a worker
    work = f"{uri}/_work"
    with plan.listing(listing.pieces(str(source), Counter())) as found:
        planned = plan.make(found, work)
    write_held(work, HeldImages.none())
    shuffle = Shuffle(SEED, planned.num_buckets, 0.0, keep_splits=False)
    began = time.process_time()
    task = partial(
        ingest.ingest_unit, work=work, shuffle=shuffle, limits=LIMITS, labels=None, secrets={}
    )
    for unit in range(planned.num_units):
        task({"unit": unit})
    sums = fault_budget.add_up(work, planned)
    fault_budget.index_spills(work, planned, sums.rows)
    near, far = (sums.drawn_groups(is_near=is_near) for is_near in (True, False))
    groups = {"train": (*near, *far), "val": ()}
    empty: dict[str, tuple[str, ...]] = {"train": (), "val": ()}
    nothing = Draw(SEED, {}, 0)
    common = shards.Work(uri, work, "k" * 8, SEED, masks, (), 4096, groups, empty, nothing, {})
    shards.write_shard(
        {"split": "train", "shard": 0, "first_bucket": 0, "last_bucket": planned.num_buckets},
        work=common,
    )
    return time.process_time() - began


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""ImageNet's counts and layout with small images: what grows with 1.28 million of them.

Writes ILSVRC2012_img_train.tar (a tar of 1,000 tars), ILSVRC2012_img_val.tar and its label list
with as many images as the originals hold, each a real photograph shrunk to 128 px and made unique
by a comment. Prepares them, prepares them again, checks every file, and reads the first batches of
a training run. Times of these small images say nothing about the codec; see `prepare` for that.
Needs 25 GB of disk.

$ python -m benchmarks.imagenet_scale --images data/voc_mini --folder /tmp/scale
"""

import argparse
import io
import itertools
import multiprocessing
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
import simplejpeg

from benchmarks.decode_core import load
from benchmarks.prepare import made_unique
from benchmarks.prepare_memory import peak_memory
from pipelines.data import stream
from pipelines.data.manifest import read_manifest
from pipelines.data.stream_plan import StreamPlan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.prepare.verify import verify as verify_files
from pipelines.runtime import cluster

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000
SIDE = 128  # px, of the shorter side of a source image


def main() -> None:
    """Make the source, run the steps, each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--folder", type=Path, required=True, help="for source and dataset; kept")
    parser.add_argument("--divisor", type=int, default=1, help="a smaller ImageNet, for a try")
    args = parser.parse_args()
    source, output = args.folder / "source", args.folder / "dataset"
    if not (source / "synsets.txt").exists():
        write_source(source, [small(data) for data in load(args.images, 2000, None)], args.divisor)
    config = PrepareConfig(
        source=str(source),
        output=str(output),
        labels=str(source / "validation_ground_truth.txt"),
        class_list=str(source / "synsets.txt"),
        sides=(SIDE,),
    )
    steps: dict[str, tuple[Callable[..., str], Any]] = {
        "prepare": (prepare, config),
        "the same again": (prepare, config),
        "verify": (verify, str(output)),
        "first batches": (first_batches, str(output)),
    }
    for name, (step, argument) in steps.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            print(f"{name}: {process.submit(measured, step, argument).result()}", flush=True)


def measured(step: Callable[[Any], str], argument: object) -> str:
    """What a step says of itself, its time and the peaks of memory."""
    with peak_memory() as peak:
        began = time.perf_counter()
        said = step(argument)
        seconds = time.perf_counter() - began
    return (
        f"{seconds:,.1f} s, driver {peak.driver / 1e6:,.0f} MB, largest worker "
        f"{peak.worker / 1e6:,.0f} MB; {said}"
    )


def prepare(config: PrepareConfig) -> str:
    """The whole job, with the start of a local cluster."""
    manifest = read_manifest(prepare_dataset(config))
    files = sum(len(files) for files in manifest.splits.values())
    size = sum(file.bytes for files in manifest.splits.values() for file in files)
    return f"{manifest.written:,} images in {files} shards, {size / 1e9:.1f} GB"


def verify(uri: str) -> str:
    """Every checksum."""
    verify_files(uri, read_manifest(uri))
    return "all checksums hold"


def first_batches(uri: str) -> str:
    """A run of 90 epochs in batches of 256, of which 100 batches are read."""
    manifest = read_manifest(uri)
    plan = StreamPlan(
        uri=uri,
        manifest=manifest,
        strategy="random_region",
        side=SIDE,
        shorter=0,
        batch_size=256,
        num_workers=1,
        steps=90 * manifest.rows("train") // 256,
        seed=0,
    )

    def arrivals(shard: ray.data.DataIterator) -> tuple[float, float]:
        """Seconds to the first batch and to the hundredth; a consumer as in training."""
        began = time.perf_counter()
        batches = stream.batches(shard, plan)
        next(batches)
        first_s = time.perf_counter() - began
        next(itertools.islice(batches, 98, None))
        return first_s, time.perf_counter() - began

    with cluster.connect():
        (shard,) = stream.stream(plan).streaming_split(1, equal=True)
        first_s, hundredth_s = ray.get(ray.remote(num_cpus=0)(arrivals).remote(shard))
    return (
        f"first of {plan.steps:,} steps after {first_s:.1f} s, hundredth after {hundredth_s:.1f} s"
    )


def small(data: bytes) -> bytes:
    """A photograph with a shorter side of SIDE px."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)))
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=75, colorsubsampling="420")
    return bytes(jpeg)


def write_source(folder: Path, images: list[bytes], divisor: int) -> None:
    """The official files, and the two lists of the development kit."""
    unique = (made_unique(images[number % len(images)], number) for number in itertools.count())
    classes = [f"n{number:08}" for number in range(1, CLASSES // divisor + 1)]
    per_class, more = divmod(TRAIN // divisor, len(classes))
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    with tarfile.open(folder / "train/ILSVRC2012_img_train.tar", "w") as outer:
        for number, name in enumerate(classes):
            inner = io.BytesIO()
            count = per_class + (number < more)
            names = (f"{name}_{at}.JPEG" for at in range(count))
            add(inner, zip(names, unique, strict=False))
            header = tarfile.TarInfo(f"{name}.tar")
            header.size = inner.tell()
            inner.seek(0)
            outer.addfile(header, inner)
    count = VAL // divisor
    names = (f"ILSVRC2012_val_{at:08}.JPEG" for at in range(1, count + 1))
    with (folder / "val/ILSVRC2012_img_val.tar").open("wb") as file:
        add(file, zip(names, unique, strict=False))
    labels = "".join(f"{at % len(classes) + 1}\n" for at in range(count))
    (folder / "validation_ground_truth.txt").write_text(labels)
    (folder / "synsets.txt").write_text("".join(f"{name}\n" for name in classes))


def add(stream: Any, files: Iterator[tuple[str, bytes]]) -> None:
    """A tar of these files."""
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


if __name__ == "__main__":
    main()

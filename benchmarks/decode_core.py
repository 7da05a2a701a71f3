#!/usr/bin/env python3
"""One core, one image after the other: what validation and care cost.

    ours     validate, decode, turn upright, shrink, encode: what `prepare` does per image
    bare     libjpeg-turbo decode + OpenCV resize + libjpeg-turbo encode of the same bytes
    pillow   the map function one would write: open, convert, resize, save, all with defaults

Rounds are interleaved; ratios are medians over rounds of the ratio within a round. The bytes are
in memory; the outputs of `ours` and `bare` are compared first and must be the same image.

$ python -m benchmarks.decode_core --images data/pretrain_A/train --resize-to 500 375
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipelines.prepare.normalise import Limits, normalise

LIMITS = Limits(stored_side=256, jpeg_quality=90, max_pixels=50_000_000, min_side=16)
TARGET_OF_BARE, TARGET_OF_PILLOW = 0.85, 2.0


def ours(data: bytes) -> bytes:
    """What `prepare` does."""
    return normalise(data, "image.jpg", LIMITS).jpeg


def bare(data: bytes) -> bytes:
    """The codec and nothing else."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    height, width = pixels.shape[:2]
    side = LIMITS.stored_side
    if min(height, width) > side:
        scale = side / min(height, width)
        size = (max(side, round(width * scale)), max(side, round(height * scale)))
        pixels = cv2.resize(pixels, size)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))


def pillow(data: bytes) -> bytes:
    """The plain way."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    side = LIMITS.stored_side
    if min(width, height) > side:
        scale = side / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def load(folder: Path, count: int, size: tuple[int, int] | None) -> list[bytes]:
    """JPEGs of a folder, enlarged to (width, height) where requested."""
    files = sorted(folder.rglob("*.jpg"))[:: max(len(list(folder.rglob("*.jpg"))) // count, 1)]
    images = [file.read_bytes() for file in files[:count]]
    if size is None:
        return images
    enlarged = []
    for data in images:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
        enlarged.append(
            simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90, colorsubsampling="420")
        )
    return enlarged


def rate(work: Callable[[bytes], bytes], images: Sequence[bytes]) -> float:
    """Images per second of processor time."""
    began = time.process_time()
    for data in images:
        work(data)
    return len(images) / (time.process_time() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resize-to", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    size = (args.resize_to[0], args.resize_to[1]) if args.resize_to else None
    images = load(args.images, args.count, size)
    same = sum(ours(data) == bare(data) for data in images)
    print(
        f"{len(images)} images, {sum(map(len, images)) / len(images):,.0f} bytes each, "
        f"{same} of them byte-equal from `ours` and `bare`"
    )
    rounds = []
    for _ in range(args.rounds):
        rounds.append([rate(work, images) for work in (ours, bare, pillow)])
    columns = list(zip(*rounds, strict=True))
    for name, rates in zip(("ours", "bare", "pillow"), columns, strict=True):
        print(
            f"{name:7} {statistics.median(rates):8,.0f} images/s of one core "
            f"({min(rates):,.0f} to {max(rates):,.0f})"
        )
    for index, name, target in ((1, "bare", TARGET_OF_BARE), (2, "pillow", TARGET_OF_PILLOW)):
        ratio = statistics.median(row[0] / row[index] for row in rounds)
        verdict = "met" if ratio >= target else "NOT met"
        print(f"ours / {name}: {ratio:.2f} (target {target}: {verdict})")


if __name__ == "__main__":
    main()

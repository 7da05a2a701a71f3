"""What a dataset is called, for people: after the place that its images came from."""

import re

from pipelines.errors import redact

SAMPLES = re.compile(r"samples-\d+/pictures$")
SPLITS = ("train", "val", "images", "data")  # names that say nothing about what they hold
MAX_NAME = 40  # characters


def source_name(source: str) -> str:
    """`photos` of `/data/photos`, `s3://bucket/photos/train` or `photos.tar.gz`.

    Args:
        source: URIs as they were typed, parted by spaces; empty where nobody noted it.
    """
    if not source.strip():
        return "unnamed images"
    if SAMPLES.search(source.rstrip("/")):
        return "sample photographs"
    parts = [part for part in redact(source).rstrip("/").split("/") if part]
    if not parts:  # the root of a disk
        return "unnamed images"
    name = parts[-1]
    if name in SPLITS and len(parts) > 1 and not parts[-2].endswith(":"):
        name = f"{parts[-2]}/{name}"
    stem = re.sub(r"(\.(tar|tgz|zip|parquet|csv|txt|jsonl?))?(\.(gz|xz|bz2|zst))?$", "", name)
    name = stem or name  # a file may be called `.tar`
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."

"""Adding to a dataset: what it holds already, and the sum of old and new."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from ce_model.masks import MASK_VERSION
from pipelines import storage
from pipelines.data import manifest, shards
from pipelines.data.manifest import SPLITS, Manifest
from pipelines.errors import UserError
from pipelines.prepare import digests
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.held import HeldImages, write_held

BATCH_ROWS = 4096


def write(config: PrepareConfig, uri: str, work: str, old: Manifest | None) -> HeldImages:
    """Store what the dataset at `uri` holds, which new images are held against; returns it.

    Raises:
        UserError: the dataset was made with other settings.
    """
    if old is None:
        write_held(work, HeldImages.none())
        return HeldImages.none()
    for name, there, wanted in (
        ("stored_side", old.stored_side, config.stored_side),
        ("seed", old.seed, config.seed),
    ):
        if there != wanted:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} is {wanted}; the dataset in '{uri}' was made with {there}, and added "
                "images must be like those in it. Use that, or another output"
            )
    if set(old.masks) != set(config.masks):
        have = ", ".join(f"{s.column} x {s.variants} of version {s.version}" for s in old.masks)
        raise UserError(
            f"the masks asked for differ from those of the dataset in '{uri}', which are {have} "
            f"(now version {MASK_VERSION} is drawn). Use the same, or first add masks: "
            f"python jobs/prepare.py --source {uri}{_mask_flags(config)}"
        )
    held = _held(uri, old)
    write_held(work, held)
    return held


def _mask_flags(config: PrepareConfig) -> str:
    """The flags of the masks, as far as they are not the usual ones."""
    sides, strategies = (" ".join(map(str, each)) for each in (config.sides, config.strategies))
    flags = {"sides": sides, "strategies": strategies, "variants": config.variants}
    return "".join(
        f" --{name} {text}"
        for name, text in flags.items()
        if getattr(config, name) != getattr(PrepareConfig, name)
    )


def _held(uri: str, old: Manifest) -> HeldImages:
    """All images of a dataset, from its columns of keys, contents and labels."""
    keys: list[bytes] = []
    contents: list[bytes | None] = []
    labels: list[int] = []
    is_val: list[bool] = []
    for split in old.splits:
        for group in shards.row_groups(old, split):
            table = shards.read_row_group(uri, group, ["key", "sha256", "label"])
            keys += map(digests.of_key, table.column("key").to_pylist())
            contents += table.column("sha256").to_pylist()
            labels += table.column("label").fill_null(-1).to_pylist()
            is_val += [split == "val"] * group.rows
    order = np.argsort(known := np.array(keys, "S16"), kind="stable")
    row_of = np.empty(len(order), np.int64)
    row_of[order] = np.arange(len(order))
    readable = [(digests.of_content(c), row) for row, c in enumerate(contents) if c is not None]
    found = np.array([digest for digest, _ in readable], "S16")
    rows = row_of[[row for _, row in readable]] if readable else np.empty(0, np.int64)
    by_content = np.argsort(found, kind="stable")
    return HeldImages(
        keys=known[order],
        labels=np.array(labels, np.int32)[order],
        is_val=np.array(is_val, bool)[order],
        contents=found[by_content],
        content_rows=rows[by_content],
        aside=digests.sorted_set(digests.of_quarantined(*each) for each in _set_aside(uri, old)),
        classes=old.classes,
    )


def _set_aside(uri: str, old: Manifest) -> Iterator[tuple[str, str | None]]:
    """Key and sha256 of what earlier jobs quarantined."""
    for number, job in enumerate(old.jobs):
        place = manifest.quarantine_uri(uri, job, old.jobs[:number].count(job))
        if storage.exists(place):
            with storage.open_input(place) as file:
                names = ["key", "sha256"]
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=names):
                    yield from zip(*(batch.column(n).to_pylist() for n in names), strict=True)


def join_datasets(old: Manifest, new: Manifest) -> Manifest:
    """Old and new images as one dataset; the old shards stay as they are."""
    pixels = old.train_pixels + new.train_pixels
    # A mean times its pixels is the exact sum again: sums stay far below 2^52.
    sums = [
        round(before * old.train_pixels) + round(added * new.train_pixels)
        for before, added in zip(old.mean_rgb, new.mean_rgb, strict=True)
    ]
    red, green, blue = (total / max(pixels, 1) for total in sums)
    return replace(
        new,
        splits={
            split: (*old.splits.get(split, ()), *new.splits.get(split, ())) for split in SPLITS
        },
        masks=old.masks,
        mean_rgb=(red, green, blue),
        train_pixels=pixels,
        listed=old.listed + new.listed,
        written=old.written + new.written,
        quarantined=old.quarantined + new.quarantined,
        duplicates=old.duplicates + new.duplicates,
        quarantine=dict(Counter(old.quarantine) + Counter(new.quarantine)),
        converted=dict(Counter(old.converted) + Counter(new.converted)),
        not_read=new.not_read,
        contradictions=old.contradictions + new.contradictions,
        relabelled=old.relabelled + new.relabelled,
        labels_since=len(old.jobs) if new.relabelled else old.labels_since,
        jobs=(*old.jobs, *new.jobs),
        revision=old.revision + 1,
    )

"""Adding to a dataset: what it holds already, and the sum of old and new."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ce_model.masks import MASK_VERSION
from pipelines import storage
from pipelines.data import manifest, shards
from pipelines.data.manifest import SPLITS, Manifest
from pipelines.errors import UserError
from pipelines.prepare import digests, ingest
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.digests import Digests
from pipelines.prepare.ingest import ExistingImages, Labelling

BATCH_ROWS = 4096


def write(config: PrepareConfig, uri: str, work: str, old: Manifest | None) -> None:
    """Store the keys and contents of the dataset at `uri`, which new images are held against.

    Raises:
        UserError: the dataset was made with other settings.
    """
    if old is None:
        ingest.write_existing(work, ExistingImages.none())
        return
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
        held = ", ".join(f"{s.column} x {s.variants} of version {s.version}" for s in old.masks)
        raise UserError(
            f"the masks asked for differ from those of the dataset in '{uri}', which are {held} "
            f"(now version {MASK_VERSION} is drawn). Use the same, or first add masks: "
            f"python jobs/prepare.py --source {uri}{_mask_flags(config)}"
        )
    keys, key_labels = _labelled(uri, old, "key", digests.of_key)
    contents, content_labels = _labelled(uri, old, "sha256", digests.of_content)
    aside = digests.sorted_set(digests.of_quarantined(*found) for found in _set_aside(uri, old))
    known = ExistingImages(keys, key_labels, contents, content_labels, aside, old.classes)
    ingest.write_existing(work, known)


def _mask_flags(config: PrepareConfig) -> str:
    """The flags of the masks, as far as they are not the usual ones."""
    sides, strategies = (" ".join(map(str, each)) for each in (config.sides, config.strategies))
    flags = {"sides": sides, "strategies": strategies, "variants": config.variants}
    return "".join(
        f" --{name} {text}"
        for name, text in flags.items()
        if getattr(config, name) != getattr(PrepareConfig, name)
    )


def _labelled(
    uri: str, old: Manifest, name: str, digest: Callable[[Any], bytes]
) -> tuple[Digests, Labelling]:
    """Digests of a column, sorted, and the label of each row; -1 without one."""
    found: list[bytes] = []
    labels: list[int] = []
    for split in old.splits:
        for group in shards.row_groups(old, split):
            table = shards.read_row_group(uri, group, [name, "label"])
            values, given = (table.column(each).to_pylist() for each in (name, "label"))
            for value, label in zip(values, given, strict=True):
                if value is not None:
                    found.append(digest(value))
                    labels.append(-1 if label is None else label)
    order = np.argsort(known := np.array(found, "S16"), kind="stable")
    return known[order], np.array(labels, np.int32)[order]


def _set_aside(uri: str, old: Manifest) -> Iterator[tuple[str, str | None]]:
    """Key and sha256 of what earlier jobs quarantined."""
    for job in old.jobs:
        place = manifest.quarantine_uri(uri, job)
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
        jobs=(*old.jobs, *new.jobs),
        revision=old.revision + 1,
    )

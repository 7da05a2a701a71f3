"""`--dry-run`: sample the source, predict shards, bytes and time, write nothing."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import cv2
import numpy as np
import psutil
from rich.table import Table

from pipelines.errors import UserError
from pipelines.prepare import plan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.normalise import Fault, normalise
from pipelines.prepare.plan import Listing
from pipelines.prepare.progress import console
from pipelines.prepare.shards import mask_cell, num_shards
from pipelines.prepare.sources import tars
from pipelines.prepare.sources.labels import Labels
from pipelines.prepare.sources.listing import Piece
from pipelines.prepare.sources.readers import Member, members
from pipelines.runtime.progress import duration

SAMPLE_PIECES = 16
SAMPLE_PICTURES = 64


def show(config: PrepareConfig, found: Listing, labels: Labels | None) -> None:
    """Print what the job would do, from a sample spread over the source."""
    cv2.setNumThreads(1)
    faults: Counter[str] = Counter()
    classes: set[str] = set()
    read_bytes = stored_bytes = pictures = 0
    ends = [time.perf_counter()]
    for piece, member in islice(_spread(found), SAMPLE_PICTURES):
        pictures += 1
        size = len(member.data or b"")
        read_bytes += tars.BLOCK + tars.padded_size(size) if piece.kind == "tar" else size
        class_name = member.class_name or (labels.of(member.key) if labels else None)
        classes |= {class_name} if class_name else set()
        try:
            if member.data is None:
                raise member.fault or AssertionError
            stored_bytes += len(normalise(member.data, member.key, config.limits).jpeg)
            for spec in config.masks:
                mask_cell(config.seed, spec, member.key)
        except Fault as fault:
            faults[fault.kind] += 1
        ends.append(time.perf_counter())
    if not pictures:
        raise UserError(f"source is '{config.source}'; there is no image in what was sampled")
    # The first ones load libraries and fill caches, which a long job does once.
    seconds = float(np.median(np.diff(ends)))
    good = max(pictures - faults.total(), 1)
    is_files = found.files == found.pieces
    expected = found.pieces if is_files else round(found.bytes * pictures / max(read_bytes, 1))
    mask_bytes = sum(spec.bytes_per_mask * spec.variants for spec in config.masks)
    cores = psutil.cpu_count(logical=False) or 1
    console.print(f"would prepare {config.source}", soft_wrap=True)
    table = Table(show_header=False)
    about = "" if is_files else "about "
    table.add_row("images", f"{about}{expected:,} in {found.bytes / 1e6:,.1f} MB")
    kinds = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}" if classes else "no class"
    table.add_row("sampled", f"{pictures} images of {kinds}")
    bad = ", ".join(f"{count} {kind}" for kind, count in faults.items())
    table.add_row("bad among them", bad or "none")
    shards = num_shards(
        expected, config.rows_per_shard, config.row_group_rows, plan.num_buckets(found)
    )
    table.add_row("shards", f"about {shards:,}")
    stored = expected * stored_bytes / good
    table.add_row(
        "bytes",
        f"about {stored / 1e6:,.1f} MB of images and at most "
        f"{expected * mask_bytes / 1e6:,.1f} MB of masks, which compress; as much again meanwhile",
    )
    needed = duration(seconds * expected / cores)
    table.add_row("time", f"about {needed} on {cores} cores, and some seconds to start Ray")
    console.print(table)
    console.print("nothing was written")


def _spread(found: Listing) -> Iterator[tuple[Piece, Member]]:
    """A few images of each of a few pieces; of single files one each."""
    wanted = SAMPLE_PICTURES if found.files == found.pieces else SAMPLE_PIECES
    step = max(found.pieces // wanted, 1)
    each = -(-SAMPLE_PICTURES // min(found.pieces, wanted))
    for piece in islice(found, 0, None, step):
        for member in islice(members(piece), each):
            yield piece, member

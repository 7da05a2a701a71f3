"""`--dry-run`: sample the source, predict shards, bytes and time, write nothing."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import psutil
from rich.table import Table

from pipelines.data import untrusted
from pipelines.errors import UserError, counted
from pipelines.prepare import class_facts, draw, plan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.normalise import Fault, normalise
from pipelines.prepare.plan import Listing
from pipelines.prepare.progress import console
from pipelines.prepare.shards import mask_cell, num_shards
from pipelines.prepare.sources import tars
from pipelines.prepare.sources.labelled import labelled
from pipelines.prepare.sources.labels import Labels
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.readers import Member, members
from pipelines.runtime.progress import duration

SAMPLE_PIECES = 16
SAMPLE_IMAGES = 64


def show(config: PrepareConfig, found: Listing, labels: Labels | None) -> None:
    """Print what the job would do, from a sample spread over the source."""
    untrusted.use_one_thread()
    faults: Counter[str] = Counter()
    bare_names: Counter[str] = Counter()  # the job tells of them
    seen = _Seen(config.validation_share)
    read_bytes = stored_bytes = images = 0
    ends = [time.perf_counter()]
    for piece, member in islice(_spread(found), SAMPLE_IMAGES):
        images += 1
        size = len(member.data or b"")
        read_bytes += tars.BLOCK + tars.padded_size(size) if piece.kind == "tar" else size
        member = labelled(member, labels, bare_names)
        seen.add(member)
        try:
            if member.data is None:
                raise member.fault or AssertionError
            stored_bytes += len(normalise(member.data, member.key, config.limits).jpeg)
            for spec in config.masks:
                mask_cell(config.seed, spec, member.key)
        except Fault as fault:
            faults[fault.kind] += 1
        ends.append(time.perf_counter())
    if not images:
        raise UserError(f"source is '{config.shown_source}'; there is no image in what was sampled")
    # The first ones load libraries and fill caches, which a long job does once.
    seconds = float(np.median(np.diff(ends)))
    good = max(images - faults.total(), 1)
    is_files = found.files == found.pieces
    expected = found.pieces if is_files else round(found.bytes * images / max(read_bytes, 1))
    mask_bytes = sum(spec.bytes_per_mask * spec.variants for spec in config.masks)
    cores = psutil.cpu_count(logical=False) or 1
    console.print(f"would prepare {config.shown_source}", soft_wrap=True)
    table = Table(show_header=False)
    about = "" if is_files else "about "
    table.add_row("images", f"{about}{expected:,} in {found.bytes / 1e6:,.1f} MB")
    table.add_row("sampled", counted(images, "image"))
    if is_files:  # all are known by name
        seen = _Seen(config.validation_share)
        for piece in found:
            split = piece.split if found.has_validation else None
            seen.add(labelled(Member(piece.key, None, split, piece.class_name), labels, bare_names))
    by_class = seen.by_class()
    names = tuple(sorted({*by_class["train"], *by_class["val"]} - {class_facts.NO_CLASS}))
    classes = class_facts.facts(by_class, names)
    for split, counts in by_class.items():
        table.add_row(split, counted(counts.total(), "image") + ("" if is_files else " sampled"))
    _, count, which = class_facts.row(classes)
    table.add_row("classes", f"{count}: {which}" + ("" if is_files else ", of those sampled"))
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
    for warning in classes["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print("nothing was written")


class _Seen:
    """Images by class: those in a split, and how many others, of which validation is drawn."""

    def __init__(self, validation_share: float) -> None:
        self._share = validation_share
        self._own: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
        self._free: Counter[str] = Counter()

    def add(self, member: Member) -> None:
        if member.split == "test" or (member.fault and member.fault.kind == "missing_label"):
            return
        counts = self._own[member.split] if member.split else self._free
        counts[member.class_name or class_facts.NO_CLASS] += 1

    def by_class(self) -> dict[str, Counter[str]]:
        drawn = Counter({name: draw.wanted(n, self._share) for name, n in self._free.items()})
        rest = self._free - drawn
        return {"train": self._own["train"] + rest, "val": self._own["val"] + drawn}


def _spread(found: Listing) -> Iterator[tuple[Piece, Member]]:
    """A few images of each of a few pieces; of single files one each."""
    wanted = SAMPLE_IMAGES if found.files == found.pieces else SAMPLE_PIECES
    step = max(found.pieces // wanted, 1)
    each = -(-SAMPLE_IMAGES // min(found.pieces, wanted))
    for piece in islice(found, 0, None, step):
        for member in islice(members(piece), each):
            yield piece, member

"""Both passes over a source: images -> spills -> shards, and the manifest of the result."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from pipelines.data.manifest import Manifest, quarantine_uri
from pipelines.errors import counted
from pipelines.prepare import (
    doubts,
    draw,
    existing,
    fault_budget,
    ingest,
    records,
    relabel,
    shards,
    unread,
)
from pipelines.prepare.class_names import merge_classes, same_classes
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.fault_budget import SourceTotals
from pipelines.prepare.held import HeldImages
from pipelines.prepare.ingest import CONTRADICTION, Shuffle
from pipelines.prepare.plan import Plan
from pipelines.prepare.progress import console
from pipelines.prepare.records import QuarantinedRow
from pipelines.prepare.relabel import Changes
from pipelines.prepare.shards import ShardRecord
from pipelines.prepare.sources.labels import Labels
from pipelines.prepare.sources.layout import quoted
from pipelines.prepare.tasks import run_tasks

MAX_KINDS = 100  # of what is not read, in the manifest


class Job(NamedTuple):
    """One run of the job, as far as it is known when the source is listed."""

    config: PrepareConfig
    uri: str
    """The dataset."""
    work: str
    """Where finished parts lie."""
    key: str
    planned: Plan
    labels: Labels | None
    old: Manifest | None
    """The dataset that is added to."""
    held: HeldImages
    """Its images."""
    others: Counter[str]
    """What was listed and is not read."""
    secrets: dict[str, str]
    """Logins and signatures of the source; see `plan.Listing`."""


def run_passes(job: Job) -> Manifest:
    """Do what is not done yet.

    Raises:
        UserError: too many faults, or a doubt that only a person can settle.
    """
    config, old = job.config, job.old
    sums = _ingest(job)
    doubts.check(config, job.planned, sums, job.uri)
    report = quarantine_uri(job.uri, job.key, old.jobs.count(job.key) if old else 0)
    units = job.planned.num_units
    fault_budget.check_budget(config, report, job.work, sums, units, adding=old is not None)
    _tell_faults(sums)
    same_source = old is not None and old.source == config.shown_source
    changes = relabel.find_changes(job.work, units, job.held, same_source=same_source)
    before = old.classes if old else ()
    named = same_classes(before, {*sums.stored_by_class, *changes.names})
    classes = merge_classes(before, named.values())
    common = _work(job, sums, classes, named)
    written = _write(job, sums, common)
    twins = _write_quarantine(job, report, sums, written, changes)
    manifest = _manifest(job, classes, sums, written)
    manifest = replace(
        manifest,
        not_read=_not_read(job, sums),
        relabelled=len(changes.rows),
        contradictions=manifest.contradictions - twins,
    )
    if old is None:
        return manifest
    if len(changes.rows):
        label_of = {name: label for label, name in enumerate(classes)}
        labels = [label_of[named.get(name, name)] for name in changes.classes]
        old = relabel.write_labels(job.uri, job.work, common.prefix, old, job.held, changes, labels)
        _tell(changes, old.revision)
    return existing.join_datasets(old, manifest)


def _ingest(job: Job) -> SourceTotals:
    """The first pass."""
    config, planned = job.config, job.planned
    shuffle = Shuffle(
        config.seed, planned.num_buckets, config.validation_share, planned.has_validation
    )
    done = records.finished_units(job.work)
    units = [{"unit": unit} for unit in range(planned.num_units) if unit not in done]
    task = partial(
        ingest.ingest_unit,
        work=job.work,
        shuffle=shuffle,
        limits=config.limits,
        labels=job.labels,
        secrets=job.secrets,
    )
    run_tasks("reading images", units, task)
    return fault_budget.add_up(job.work, planned)


def _work(
    job: Job, sums: SourceTotals, classes: tuple[str, ...], named: dict[str, str]
) -> shards.Work:
    """What the shards have in common, with the draw for validation."""
    config = job.config
    fault_budget.index_spills(job.work, job.planned, sums.rows)
    candidates = partial(fault_budget.candidates, job.work, job.planned, sums)
    share = config.validation_share
    drawn = draw.draw(config.seed, share, candidates, named, job.held.by_class())
    near, far = (sums.drawn_groups(is_near=is_near) for is_near in (True, False))
    return shards.Work(
        uri=job.uri,
        work=job.work,
        prefix=shards.prefix(job.key, job.old),
        seed=config.seed,
        masks=config.masks,
        classes=classes,
        same_class=named,
        row_group_rows=config.row_group_rows,
        groups=sums.groups,
        drawn={
            "train": (*near, *far),
            "val": near if drawn.is_near(share) else (*near, *far),
        },
        draw=drawn,
        repeated_keys=fault_budget.find_repeated_keys(job.work, job.planned, sums),
    )


def _write(job: Job, sums: SourceTotals, common: shards.Work) -> dict[str, list[ShardRecord]]:
    """The second pass."""
    config, num_buckets = job.config, job.planned.num_buckets
    in_val = sums.rows["val"] + common.draw.rows
    counts = {
        split: shards.num_shards(rows, config.rows_per_shard, config.row_group_rows, num_buckets)
        for split, rows in (("train", sums.rows.total() - in_val), ("val", in_val))
        if rows
    }
    items = shards.items(counts, num_buckets, shards.finished_shards(job.work))
    run_tasks("writing shards", items, partial(shards.write_shard, work=common))
    return {
        split: [shards.read_record(job.work, split, shard) for shard in range(count)]
        for split, count in counts.items()
    }


def _write_quarantine(
    job: Job,
    report: str,
    sums: SourceTotals,
    written: dict[str, list[ShardRecord]],
    changes: Changes,
) -> int:
    """Store what was left out; returns how many of the contradictions are images that moved."""
    second = [record.set_aside for found in written.values() for record in found]
    if not sums.faults and not any(second):
        return 0
    moved = 0

    def explained(rows: Sequence[QuarantinedRow]) -> list[QuarantinedRow]:
        nonlocal moved
        kept = []
        for row in rows:
            if row.fault == "duplicate" and relabel.is_moved(row, job.held, changes):
                moved += row.message.startswith(CONTRADICTION)
                row = replace(row, message=relabel.MOVED)
            kept.append(row)
        return kept

    first = fault_budget.quarantined_rows(job.work, job.planned.num_units)
    fault_budget.write_quarantine(report, map(explained, chain(first, second)))
    return moved


def _tell_faults(sums: SourceTotals) -> None:
    """The first image of each class of fault: its reason names the flag that would let it in."""
    for kind, count in sums.faults.most_common():
        if kind != "duplicate":
            first = sums.first[kind]
            console.print(f"quarantined: {count:,} {kind}, such as {first}", soft_wrap=True)


def _tell(changes: Changes, revision: int) -> None:
    moved = f", {len(changes.moved):,} of them by a move to another place" if changes.moved else ""
    console.print(
        f"labels: {counted(len(changes.rows), 'image')} of the dataset in another class now"
        f"{moved}; revision {revision} keeps the earlier ones",
        soft_wrap=True,
    )


def _not_read(job: Job, sums: SourceTotals) -> dict[str, int]:
    """What is not read, for the manifest; what was met inside archives is told here."""
    every = Counter(job.others) + sums.not_read
    if sums.not_read:
        what = unread.not_read(sums.not_read)
        console.print(f"not read, in archives and tables: {what}", soft_wrap=True)
    known = {"", *(job.old.classes if job.old else ())}
    gone = sorted(set(sums.listed_by_class) - set(sums.stored_by_class) - known)
    if gone:
        console.print(
            f"warning: of {counted(len(gone), 'class', 'classes')} no image could be used: "
            f"{quoted(gone)}",
            soft_wrap=True,
        )
        every[f"class name without a usable image, as '{gone[0]}'"] = len(gone)
    return dict(every.most_common(MAX_KINDS))


def _manifest(
    job: Job, classes: tuple[str, ...], sums: SourceTotals, written: dict[str, list[ShardRecord]]
) -> Manifest:
    """What this job alone made."""
    config = job.config
    everything = [record for found in written.values() for record in found]
    faults = sums.faults + Counter(
        fault.fault for record in everything for fault in record.set_aside
    )
    duplicates = faults.pop("duplicate", 0)
    train = written.get("train", [])
    pixels = sum(record.pixels for record in train)
    colours = np.array([record.rgb_sums for record in train], dtype=object).reshape(-1, 3)
    red, green, blue = (int(total) / max(pixels, 1) for total in colours.sum(axis=0))
    converted = sum((Counter(record.converted) for record in everything), Counter[str]())
    return Manifest(
        splits={
            split: tuple(record.file for record in found if record.file.rows)
            for split, found in written.items()
        },
        classes=classes,
        mean_rgb=(red, green, blue),
        masks=config.masks,
        stored_side=config.stored_side,
        seed=config.seed,
        listed=sums.listed,
        written=sum(record.file.rows for record in everything),
        quarantined=faults.total(),
        duplicates=duplicates,
        quarantine=dict(sorted(faults.items())),
        converted=dict(sorted(converted.items())),
        train_pixels=pixels,
        jobs=(job.key,),
        source=config.shown_source,
        contradictions=sums.contradictions
        + sum(
            fault.message.startswith(CONTRADICTION)
            for record in everything
            for fault in record.set_aside
        ),
    )

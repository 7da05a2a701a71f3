"""The job: plan, gather, judge the faults, write shards, commit.

Everything before the manifest lies under `<dataset>/_work/<key>-<base>` or under a name that no
manifest holds; the manifest is written last, once. A rerun finds what is finished by its records.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain

import numpy as np

from pipelines import storage
from pipelines.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    find_manifest,
    is_dataset,
    quarantine_uri,
    replace_manifest,
    write_manifest,
)
from pipelines.errors import UserError
from pipelines.prepare import (
    card,
    doubts,
    dry_run,
    existing,
    fault_budget,
    ingest,
    plan,
    shards,
    sidecars,
)
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.fault_budget import SourceTotals
from pipelines.prepare.ingest import CONTRADICTION, Shuffle
from pipelines.prepare.plan import Listing, Plan
from pipelines.prepare.progress import console, counted, listing_progress
from pipelines.prepare.shards import ShardRecord
from pipelines.prepare.sources import layout, listing
from pipelines.prepare.sources.labels import Labels, read_labels
from pipelines.prepare.sources.layout import Rules
from pipelines.prepare.sources.listing import Found
from pipelines.prepare.tasks import run_tasks
from pipelines.runtime import cluster, environment
from pipelines.runtime.shared_folder import require_shared

NOUNS = ("image", "archive", "cell", "file")  # that kinds of what is not read begin with
SHOWN_KINDS = 8  # of what is in a source and not read
MAX_KINDS = 100  # of them in the manifest


def prepare_dataset(config: PrepareConfig) -> str:
    """Prepare a dataset, add to one, or find it prepared; returns its URI."""
    sources = tuple(map(storage.absolute, config.sources))
    if len(sources) == 1 and is_dataset(sources[0]):
        return sidecars.add_masks(config, sources[0])
    flag = "store" if config.output is None else "output"
    environment.require_lasting(flag, config.output or config.store)
    home = storage.absolute(config.output or storage.join(config.store, "prepare"))
    if not config.dry_run:
        _require_apart(sources, home)
    learned = Found.empty()
    labels = (
        read_labels(config.labels, config.class_list, config.label_base, learned.notes)
        if config.labels
        else None
    )
    with _listing(config, sources, learned) as found:
        if config.dry_run:
            dry_run.show(config, found, labels)
            return ""
        key = job_key(config, found, labels)
        uri = home if config.output else storage.join(home, key[:16])
        old = _old_manifest(uri)
        if old is not None and key in old.jobs:
            card.complete(uri, old)
            plan.clear_work(uri, key)
            console.print(f"already prepared: {uri}")
            return uri
        work = plan.work_uri(uri, key, old, " ".join(sources))
        existing.write(config, uri, work, old)
        planned = plan.make(found, work, dict(learned.folders))
    with cluster.connect():
        require_shared(flag, home)
        try:
            manifest = _passes(config, uri, work, key, planned, labels, old, learned)
        except (UserError, FileNotFoundError):
            if _is_done(uri, key):  # and the other job has cleared up behind us
                return _second(uri, key)
            raise
    if not commit(uri, manifest, old):
        return _second(uri, key)
    facts = card.write(uri, manifest)
    plan.clear_work(uri, key)
    card.show(uri, manifest, facts)
    card.track(config, uri, manifest)
    return uri


def _old_manifest(uri: str) -> Manifest | None:
    """The dataset that is added to; None for a new one."""
    old = find_manifest(uri)
    if old is None and storage.exists(storage.join(uri, MANIFEST)):
        raise UserError(
            f"output is '{uri}', where a {MANIFEST} lies that is no dataset's; give an "
            "--output elsewhere"
        )
    return old


def _require_apart(sources: tuple[str, ...], uri: str) -> None:
    """The next listing of the source would take the shards for images."""
    for source in sources:
        if storage.is_within(uri, source):
            raise UserError(
                f"--output is '{uri}', which lies in the source '{source}'; give an --output (or "
                "a --store) elsewhere"
            )


def commit(uri: str, manifest: Manifest, old: Manifest | None) -> bool:
    """Commit the result; False when the same result is there already.

    Raises:
        UserError: another job committed something else there first.
    """
    try:
        if old is None:
            write_manifest(uri, manifest)
        else:
            replace_manifest(uri, manifest)
    except FileExistsError:
        if _is_done(uri, manifest.jobs[-1]):
            return False
        raise UserError(
            f"output is '{uri}'; another job with other images or settings committed there "
            "first, and this one changed nothing. Rerun the same command to add to it"
        ) from None
    return True


def _is_done(uri: str, key: str) -> bool:
    found = find_manifest(uri)
    return found is not None and key in found.jobs


def _second(uri: str, key: str) -> str:
    plan.clear_work(uri, key)
    console.print(f"another job committed the same dataset first: {uri}")
    return uri


@contextmanager
def _listing(config: PrepareConfig, sources: tuple[str, ...], learned: Found) -> Iterator[Listing]:
    """The pieces of the source; refuses one without images."""
    pieces = listing.pieces(sources, None, config.rules, learned)
    with plan.listing(listing_progress(pieces)) as found:
        kinds = not_read(learned.others)
        if found.pieces == 0:
            raise UserError(
                f"--source is '{config.shown_source}'; there is no image to train on in it. There: "
                f"{kinds or 'nothing'}; images are JPEG, PNG, WebP or AVIF files, "
                "alone, in .tar, .zip or .parquet"
            )
        if kinds:
            console.print(f"not read: {kinds}", soft_wrap=True)
        for note in learned.notes:
            console.print(f"note: {note}", soft_wrap=True)
        yield found


def not_read(others: Counter[str]) -> str:
    """What is in a source and not read: `3 .xml, 1 README`."""
    shown = ", ".join(_counted(count, kind) for kind, count in others.most_common(SHOWN_KINDS))
    more = len(others) - SHOWN_KINDS
    return shown + (f" and {more} more kinds" if more > 0 else "")


def _counted(count: int, kind: str) -> str:
    noun, space, rest = kind.partition(" ")
    return counted(count, noun) + space + rest if noun in NOUNS else f"{count:,} {kind}"


def job_key(config: PrepareConfig, found: Listing, labels: Labels | None) -> str:
    """Key of the job: everything that the shards follow from, and no path or machine."""
    return storage.content_key(
        {
            "stage": "prepare",
            "format": FORMAT_VERSION,
            "listing": found.digest,
            "labels": asdict(labels) if labels else None,
            "masks": [asdict(spec) for spec in config.masks],
            "limits": config.limits._asdict(),
            "validation_share": config.validation_share,
            "seed": config.seed,
            "rows_per_shard": config.rows_per_shard,
            "row_group_rows": config.row_group_rows,
            **({"rules": config.rules} if config.rules != Rules() else {}),
            # Once a place came before the list; where only one of them speaks, all is as then.
            **({"labels_first": True} if labels and found.has_classes else {}),
        }
    )


def _passes(
    config: PrepareConfig,
    uri: str,
    work: str,
    key: str,
    planned: Plan,
    labels: Labels | None,
    old: Manifest | None,
    learned: Found,
) -> Manifest:
    """Both passes over what is not done yet, and the manifest of the result."""
    keep_splits = planned.has_validation
    shuffle = Shuffle(config.seed, planned.num_buckets, config.validation_share, keep_splits)
    done = ingest.finished_units(work)
    units = [{"unit": unit} for unit in range(planned.num_units) if unit not in done]
    task = partial(
        ingest.ingest_unit, work=work, shuffle=shuffle, limits=config.limits, labels=labels
    )
    run_tasks("reading images", units, task)
    sums = fault_budget.add_up(work, planned)
    doubts.check(config, planned, sums, uri)
    report = quarantine_uri(uri, key)
    fault_budget.check_budget(config, report, work, sums, planned.num_units, adding=old is not None)
    fault_budget.index_spills(work, planned, sums.rows)
    named = same_classes(old.classes if old else (), sums.stored_by_class)
    common = shards.Work(
        uri=uri,
        work=work,
        prefix=shards.prefix(key, old),
        seed=config.seed,
        masks=config.masks,
        classes=merge_classes(old.classes if old else (), Counter(named.values())),
        same_class=named,
        row_group_rows=config.row_group_rows,
        groups=sums.groups,
        repeated_keys=fault_budget.find_repeated_keys(work, planned, sums),
    )
    counts = {
        split: shards.num_shards(
            rows, config.rows_per_shard, config.row_group_rows, planned.num_buckets
        )
        for split, groups in sums.groups.items()
        if (rows := sum(sums.rows[group] for group in groups))
    }
    items = shards.items(counts, planned.num_buckets, shards.finished_shards(work))
    run_tasks("writing shards", items, partial(shards.write_shard, work=common))
    records = {
        split: [shards.read_record(work, split, shard) for shard in range(count)]
        for split, count in counts.items()
    }
    second = [record.set_aside for found in records.values() for record in found]
    if sums.faults or any(second):
        first = fault_budget.quarantined_rows(work, planned.num_units)
        fault_budget.write_quarantine(report, chain(first, second))
    manifest = _manifest(config, key, common.classes, sums, records)
    not_read_in_all = Counter(learned.others) + sums.not_read
    if sums.not_read:
        console.print(f"not read, in archives and tables: {not_read(sums.not_read)}")
    known = {"", *(old.classes if old else ())}
    gone = sorted(set(sums.listed_by_class) - set(sums.stored_by_class) - known)
    if gone:
        console.print(
            f"warning: of {counted(len(gone), 'class', 'classes')} no image could be used: "
            f"{layout.quoted(gone)}",
            soft_wrap=True,
        )
        not_read_in_all[f"class name without a usable image, as '{gone[0]}'"] = len(gone)
    manifest = replace(manifest, not_read=dict(not_read_in_all.most_common(MAX_KINDS)))
    return existing.join_datasets(old, manifest) if old else manifest


def same_classes(old: tuple[str, ...], stored: Counter[str]) -> dict[str, str]:
    """Spelling -> class; two spellings of one text, as macOS and Linux write it, are one class."""
    by_text = {unicodedata.normalize("NFC", name): name for name in reversed(old)}
    found = {}
    for name in sorted(name for name in stored if name):
        text = unicodedata.normalize("NFC", name)
        if text in stored:
            by_text.setdefault(text, text)
        found[name] = name if name in old else by_text.setdefault(text, name)
    return found


def merge_classes(old: tuple[str, ...], listed: Counter[str]) -> tuple[str, ...]:
    """Class names by label: those that have one keep it; numbers are ordered as numbers."""
    new = {name for name in listed if name} - set(old)
    by_number = all(name.isdecimal() for name in new)
    return (*old, *sorted(new, key=(lambda name: (int(name), name)) if by_number else str))


def _manifest(
    config: PrepareConfig,
    key: str,
    classes: tuple[str, ...],
    sums: SourceTotals,
    records: dict[str, list[ShardRecord]],
) -> Manifest:
    """What this job alone made."""
    everything = [record for found in records.values() for record in found]
    faults = sums.faults + Counter(
        fault.fault for record in everything for fault in record.set_aside
    )
    duplicates = faults.pop("duplicate", 0)
    train = records.get("train", [])
    pixels = sum(record.pixels for record in train)
    colours = np.array([record.rgb_sums for record in train], dtype=object).reshape(-1, 3)
    red, green, blue = (int(total) / max(pixels, 1) for total in colours.sum(axis=0))
    converted = sum((Counter(record.converted) for record in everything), Counter[str]())
    return Manifest(
        splits={
            split: tuple(record.file for record in found if record.file.rows)
            for split, found in records.items()
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
        jobs=(key,),
        source=config.shown_source,
        contradictions=sums.contradictions
        + sum(
            fault.message.startswith(CONTRADICTION)
            for record in everything
            for fault in record.set_aside
        ),
    )

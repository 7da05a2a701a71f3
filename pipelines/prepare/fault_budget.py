"""Between the passes: add up the units, hold the faults against the budget, index the spills."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import UserError, counted
from pipelines.prepare import digests, records, spill
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.digests import FREE, OPEN
from pipelines.prepare.draw import CANDIDATE, Candidates
from pipelines.prepare.ingest import CONTRADICTION, group_of
from pipelines.prepare.plan import Plan
from pipelines.prepare.records import Conflict, QuarantinedRow, SpillFile

QUARANTINE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("fault", pa.string()),
        ("message", pa.string()),
    ]
)
SHOWN_CHARS = 160  # of a reason in a message
KEYS_AT_ONCE = 1 << 21  # 50 MB of digests


@dataclass(frozen=True, kw_only=True)
class SourceTotals:
    """Sums over all units."""

    listed: int
    rows: Counter[str]
    """By group of `ingest.group_of`, duplicates included."""
    listed_by_class: Counter[str]
    faults: Counter[str]
    faults_by_class: Counter[str]
    stored_by_class: Counter[str]
    """Images that reached the shuffle."""
    unlabelled: Counter[str]
    """Images that the label list does not name, by split."""
    not_read: Counter[str]
    folders: Counter[str]
    bare_names: Counter[str]
    conflicts: dict[str, tuple[int, Conflict]]
    contradictions: int
    first: dict[str, str]
    """Class of fault -> the first image with it and its reason."""

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds of images that validation is drawn of.

        What lies in a folder `train` stays in training where there is also one for validation.
        """
        return (FREE,) if self.rows["val"] else (FREE, OPEN)

    def drawn_groups(self, *, is_near: bool) -> tuple[str, ...]:
        """The groups of these images that are not empty."""
        named = (group_of(kind, None, is_near=is_near) for kind in self.kinds)
        return tuple(group for group in named if self.rows[group])

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Split -> the groups that are of this split as a whole."""
        drawn = {*self.drawn_groups(is_near=True), *self.drawn_groups(is_near=False)}
        train = (group for group in sorted(self.rows) if group not in drawn and group != "val")
        return {"train": tuple(train), "val": ("val",) if self.rows["val"] else ()}

    @property
    def duplicates(self) -> int:
        """Images whose bytes the dataset held before."""
        return self.faults["duplicate"]

    @property
    def bad(self) -> int:
        """Images quarantined for a fault."""
        return self.faults.total() - self.duplicates


def add_up(work: str, planned: Plan) -> SourceTotals:
    """The sums of all records, one record in memory at a time."""
    listed = 0
    rows: Counter[str] = Counter()
    by_class: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    faults_by_class: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    unlabelled: Counter[str] = Counter()
    not_read: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    bare_names: Counter[str] = Counter()
    conflicts: dict[str, tuple[int, Conflict]] = {}
    contradictions = 0
    first_faults: dict[str, str] = {}
    for unit in range(planned.num_units):
        record = records.read_record(work, unit)
        listed += record.listed
        by_class.update(record.listed_by_class)
        for file in record.spills:
            rows[file.group] += file.rows
        for fault in record.set_aside:
            faults[fault.fault] += 1
            first_faults.setdefault(fault.fault, f"'{fault.key}': {fault.message[:SHOWN_CHARS]}")
            faults_by_class[fault.class_name or ""] += fault.fault != "duplicate"
            stored[fault.class_name or ""] -= 1
            contradictions += fault.message.startswith(CONTRADICTION)
            if fault.fault == "missing_label":
                unlabelled[fault.split or ""] += 1
        stored.update(record.listed_by_class)
        not_read.update(record.not_read)
        folders.update(record.folders)
        bare_names.update(record.bare_names)
        for what, (count, first) in record.conflicts.items():
            before, shown = conflicts.get(what, (0, first))
            conflicts[what] = (before + count, shown)
    return SourceTotals(
        listed=listed,
        rows=rows,
        listed_by_class=by_class,
        faults=faults,
        faults_by_class=faults_by_class,
        stored_by_class=+stored,
        unlabelled=unlabelled,
        not_read=not_read,
        folders=folders,
        bare_names=bare_names,
        conflicts=conflicts,
        contradictions=contradictions,
        first=first_faults,
    )


def over_budget(config: PrepareConfig, totals: SourceTotals, *, adding: bool) -> list[str]:
    """Each limit that the faults pass, as a sentence; `adding` to a dataset that has images."""
    over = []
    if totals.bad > max(config.max_bad_images, config.max_bad_share * totals.listed):
        over.append(
            f"{totals.bad} of {counted(totals.listed, 'image')} are bad; --max-bad-share allows "
            f"{config.max_bad_share:.2%} (and always {config.max_bad_images}, --max-bad-images)"
        )
    for name, faults in totals.faults_by_class.most_common():
        listed = totals.listed_by_class[name]
        if name and faults > max(config.max_bad_images, config.max_bad_class_share * listed):
            over.append(
                f"{faults} of {listed} in class {name}; --max-bad-class-share allows "
                f"{config.max_bad_class_share:.2%}"
            )
    broken = totals.faults["broken_archive"]
    if broken > config.max_broken_archives:
        over.append(
            f"{counted(broken, 'archive')} broken, such as {totals.first['broken_archive']}; "
            f"--max-broken-archives allows {config.max_broken_archives}"
        )
    # A folder `train` in an archive is OPEN where the listing knows of none for validation.
    is_open = (group_of(OPEN, None, is_near=is_near) for is_near in (True, False))
    of_split = {"train": ("train", *is_open), "val": ("val",)}
    for split, count in totals.unlabelled.items():
        groups = of_split.get(split, tuple(totals.rows))
        if not any(totals.rows[group] for group in groups) and not adding:
            whose = f"of {split}" if split else "of the source"
            over.append(f"the label list names none of the {counted(count, 'image')} {whose}")
    if not totals.rows.total() and totals.bad and not adding:
        over.append("not one image could be used")
    return over


def check_budget(
    config: PrepareConfig, report: str, work: str, totals: SourceTotals, units: int, *, adding: bool
) -> None:
    """Fail with a report of every fault when there are too many.

    Raises:
        UserError: the budget is exceeded, or there is no image at all.
    """
    if not totals.listed and not adding:
        raise UserError(f"--source is '{config.shown_source}'; there is no image in its archives")
    over = over_budget(config, totals, adding=adding)
    if not over:
        return
    write_quarantine(report, quarantined_rows(work, units))
    _forget_unreadable(work, units)
    kinds = ", ".join(f"{count} {kind}" for kind, count in totals.faults.most_common())
    worst = next(kind for kind, _ in totals.faults.most_common() if kind != "duplicate")
    kinds += f"; the first {worst} is {totals.first[worst]}"
    raise UserError(
        "the error budget is exceeded: "
        + "; ".join(over[:6])
        + _without_labels(totals)
        + f". Classes of fault: {kinds}. Each image with its reason: {report}"
    )


def _without_labels(totals: SourceTotals) -> str:
    """What to do where the label list leaves out what it does not mean, as a sentence."""
    if not totals.unlabelled:
        return ""
    parts = " and ".join(
        f"{count:,} of {split or 'those in no split'}" for split, count in totals.unlabelled.items()
    )
    return (
        f". The label list does not name {parts}: give one that names all (a list of one label per "
        "line never names an image in train), or prepare the part that it names as a --source of "
        "its own"
    )


def _forget_unreadable(work: str, num_units: int) -> None:
    """What could not be read may be there when the same command is run again."""
    for unit in range(num_units):
        if any(fault.fault == "unreadable" for fault in records.read_record(work, unit).set_aside):
            storage.remove(records.record_uri(work, unit))


def quarantined_rows(work: str, num_units: int) -> Iterator[Sequence[QuarantinedRow]]:
    """What the first pass quarantined, unit by unit."""
    for unit in range(num_units):
        yield records.read_record(work, unit).set_aside


def write_quarantine(uri: str, groups: Iterable[Sequence[QuarantinedRow]]) -> None:
    """All images that were quarantined, as Parquet, one group in memory at a time."""
    with (
        storage.staged_file(uri) as staged,
        pq.ParquetWriter(staged, QUARANTINE_SCHEMA, compression="zstd") as writer,
    ):
        for group in groups:
            if group:
                rows = [asdict(fault) for fault in group]
                writer.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))


def index_spills(work: str, planned: Plan, groups: Iterable[str]) -> None:
    """For the second pass: where each bucket lies in each spill file of a group."""
    for group in groups:
        files = _spills(work, planned.num_units, group)
        paths = [file.path for file in files]
        with storage.staged_file(storage.join(work, f"offsets-{group}.npy")) as staged:
            shape = (len(paths), planned.num_buckets + 1)
            table = np.lib.format.open_memmap(staged, mode="w+", dtype=np.int64, shape=shape)
            for row, file in enumerate(_spills(work, planned.num_units, group)):
                table[row] = file.offsets
            table.flush()
        storage.publish_json(storage.join(work, f"spills-{group}.json"), paths)


def _spills(work: str, num_units: int, group: str) -> Iterator[SpillFile]:
    for unit in range(num_units):
        for file in records.read_record(work, unit).spills:
            if file.group == group:
                yield file


def find_repeated_keys(work: str, planned: Plan, totals: SourceTotals) -> dict[bytes, int]:
    """Keys that occur more than once, found by ranges of their digests in bounded memory."""
    parts = max(-(-totals.rows.total() // KEYS_AT_ONCE), 1)
    found: dict[bytes, int] = {}
    for part in range(parts):
        first, last = (_bound(part, parts), _bound(part + 1, parts))
        found |= digests.find_repeated(
            keys[np.searchsorted(keys["key"], first) : np.searchsorted(keys["key"], last)]
            for keys in (spill.read_spilled(work, unit) for unit in range(planned.num_units))
        )
    return found


def _bound(part: int, parts: int) -> np.bytes_:
    """Where a part of all digests begins; past the last digest for the end."""
    if part == parts:
        return np.bytes_(b"\xff" * 17)
    return np.bytes_((part * (1 << 64) // parts).to_bytes(8, "big").ljust(16, b"\0"))


def candidates(
    work: str, planned: Plan, totals: SourceTotals
) -> Iterator[tuple[tuple[str, ...], Candidates]]:
    """The images that validation is drawn of, unit by unit, with the names of their classes."""
    for unit in range(planned.num_units):
        spilled = spill.read_spilled(work, unit)
        chosen = spilled[np.isin(spilled["kind"], totals.kinds)]
        found = np.empty(len(chosen), CANDIDATE)
        found["class"], found["hash"] = chosen["class"], chosen["hash"]
        yield records.read_record(work, unit).classes, found

"""The job: plan, gather, judge the faults, write shards, commit.

Everything before the manifest lies under `<dataset>/_work/<key>` or under a name that no manifest
holds; the manifest is written last, once. A rerun finds what is finished by its records.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayTaskError
from rich.table import Table

from ce_model.masks import Strategy
from pipelines import cluster, dataset, storage
from pipelines.dataset import FORMAT_VERSION, Manifest, MaskSpec
from pipelines.errors import UserError
from pipelines.prepare import gather, plan, shards, sources
from pipelines.prepare.gather import SetAside, Shuffle
from pipelines.prepare.pictures import Limits
from pipelines.prepare.plan import Listing, Plan
from pipelines.prepare.progress import console, progress
from pipelines.prepare.shards import ShardRecord

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


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Raw pictures -> a dataset in the shard contract."""

    source: str
    """Folder of pictures: class folders, with or without train/ and val/, or a flat folder."""
    store: str = "store"
    """The dataset goes to STORE/prepare/KEY, where the key follows from source and settings."""
    output: str | None = None
    """Folder of the dataset instead of STORE/prepare/KEY."""
    strategies: tuple[Strategy, ...] = ("central", "random_block", "random_region")
    """Families of masks to cut, section 3.3 of the paper."""
    sides: tuple[int, ...] = (128, 227)
    """Sides of the masks, px: 128 for the preset `inpaint`, 227 for `alexnet`."""
    variants: int = 2
    """Masks per picture; training turns and flips each in 8 ways."""
    stored_side: int = 256
    """Pictures are shrunk to this shorter side, px; smaller ones stay as they are."""
    jpeg_quality: int = 90
    """Of the stored pictures."""
    validation_share: float = 0.05
    """Share of pictures for val, by a hash of the key, where the source has no val of its own."""
    seed: int = 0
    """Of the shuffle, the split and the masks."""
    rows_per_shard: int = 4096
    """Pictures per Parquet file; fewer where the source is small."""
    row_group_rows: int = 256
    """Pictures per row group, the unit of reading: about 8 MB."""
    max_pixels: int = 50_000_000
    """A picture with more is set aside before it is decoded."""
    min_side: int = 16
    """A picture with a shorter side is set aside, px."""
    max_bad_images: int = 10
    """Pictures that may be set aside whatever their share."""
    max_bad_share: float = 0.001
    """Share of pictures that may be set aside before the job fails."""
    max_bad_class_share: float = 0.05
    """The same within one class."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        _require(
            "validation_share",
            self.validation_share,
            0 <= self.validation_share < 1,
            "0 or more and less than 1; something must be left to train on",
        )
        for name in ("max_bad_share", "max_bad_class_share"):
            share = getattr(self, name)
            _require(name, share, 0 <= share <= 1, "0 to 1, a share of the pictures")
        for name in ("variants", "rows_per_shard", "row_group_rows", "stored_side", "min_side"):
            count = getattr(self, name)
            _require(name, count, count >= 1, "1 or more")
        _require("jpeg_quality", self.jpeg_quality, 1 <= self.jpeg_quality <= 100, "1 to 100")
        _require("max_bad_images", self.max_bad_images, self.max_bad_images >= 0, "0 or more")
        _require(
            "sides",
            self.sides,
            all(16 <= side <= 1024 for side in self.sides),
            "16 to 1024 px each; the presets use 128 and 227",
        )
        _require(
            "min_side",
            self.min_side,
            self.min_side <= self.stored_side,
            f"at most prepare.stored_side = {self.stored_side}",
        )

    @property
    def masks(self) -> tuple[MaskSpec, ...]:
        """The mask columns, each once."""
        sides, strategies = dict.fromkeys(self.sides), dict.fromkeys(self.strategies)
        return dataset.default_masks(tuple(sides), tuple(strategies), self.variants)

    @property
    def limits(self) -> Limits:
        """What a picture may be."""
        return Limits(self.stored_side, self.jpeg_quality, self.max_pixels, self.min_side)


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f"prepare.{name} is {value}; it must be {rule}")


def run(config: PrepareConfig) -> str:
    """Prepare a dataset, or find it prepared; returns its URI."""
    source = storage.absolute(config.source)
    others: Counter[str] = Counter()
    with plan.listing(sources.pieces(source, others)) as found:
        if found.pieces == 0:
            kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
            raise UserError(
                f"source is '{config.source}'; there is no picture in it. Files there: "
                f"{kinds or 'none'}; pictures are .jpg, .jpeg or .png"
            )
        key = job_key(config, found)
        place = config.output or storage.join(config.store, "prepare", key[:16])
        uri = storage.absolute(place)
        if dataset.is_dataset(uri):
            return _already_there(uri, key)
        work = storage.join(uri, "_work", key[:16])
        planned = plan.make(found, work)
    with cluster.connected():
        _gather(config, work, planned)
        totals = _judge(config, uri, work, planned)
        manifest = _write_shards(config, uri, work, key, planned, totals)
    try:
        dataset.write_manifest(uri, manifest)
    except FileExistsError:
        raise UserError(
            f"output is '{uri}'; another job committed a dataset there first, so this one ends "
            "without touching it. Run the same command again to see whether it is the same"
        ) from None
    storage.remove(storage.join(uri, "_work"))
    _show(uri, manifest)
    return uri


def job_key(config: PrepareConfig, found: Listing) -> str:
    """Key of the job: everything that the shards follow from, and no path or machine."""
    return storage.content_key(
        {
            "stage": "prepare",
            "format": FORMAT_VERSION,
            "listing": found.digest,
            "masks": [asdict(spec) for spec in config.masks],
            "limits": config.limits._asdict(),
            "validation_share": config.validation_share,
            "seed": config.seed,
            "rows_per_shard": config.rows_per_shard,
            "row_group_rows": config.row_group_rows,
        }
    )


def _already_there(uri: str, key: str) -> str:
    if key not in dataset.read_manifest(uri).jobs:
        raise UserError(
            f"output is '{uri}'; a dataset of another source or other settings is there. "
            "Choose another output, or leave it out"
        )
    storage.remove(storage.join(uri, "_work"))
    console.print(f"already prepared: {uri}")
    return uri


def _gather(config: PrepareConfig, work: str, planned: Plan) -> None:
    """First pass over the units that have no record yet."""
    done = gather.finished_units(work)
    todo = [{"unit": unit} for unit in range(planned.num_units) if unit not in done]
    share = 0.0 if planned.has_validation else config.validation_share
    shuffle = Shuffle(config.seed, planned.num_buckets, share)
    task = partial(gather.gather, work=work, shuffle=shuffle, limits=config.limits)
    _run_tasks("reading pictures", todo, task)


def _run_tasks(
    what: str, items: Sequence[Mapping[str, Any]], task: Callable[[dict[str, Any]], dict[str, int]]
) -> None:
    """One Ray Data task per item, in any order; ends with the first failure."""
    if not items:
        return
    work = ray.data.from_items(list(items), override_num_blocks=len(items)).map(task)
    with progress(what, len(items)) as advance:
        try:
            for result in work.iter_rows():
                advance(1, result["images"], result["bytes"])
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OSError):
                raise UserError(
                    f"{what} failed: {cause}. Nothing is committed; what is finished is kept, "
                    "and the same command goes on from there"
                ) from error
            raise


@dataclass(kw_only=True)
class Totals:
    """Sums over all units."""

    listed: int
    rows: Counter[str]
    """By split, duplicates included."""
    listed_by_class: Counter[str]
    faults: Counter[str]
    faults_by_class: Counter[str]


def _judge(config: PrepareConfig, uri: str, work: str, planned: Plan) -> Totals:
    """Add up the records, write down what was set aside, and hold it against the budget."""
    totals = Totals(
        listed=0,
        rows=Counter(),
        listed_by_class=Counter(),
        faults=Counter(),
        faults_by_class=Counter(),
    )
    for unit in range(planned.num_units):
        record = gather.read_record(work, unit)
        totals.listed += record.listed
        totals.rows.update({split: file.rows for split, file in record.spills.items()})
        totals.listed_by_class.update(record.listed_by_class)
        totals.faults.update(fault.fault for fault in record.set_aside)
        totals.faults_by_class.update(fault.class_name or "" for fault in record.set_aside)
    _check_budget(config, uri, work, planned, totals)
    for split in totals.rows:
        _write_offsets(work, split, planned)
    return totals


def _check_budget(
    config: PrepareConfig, uri: str, work: str, planned: Plan, totals: Totals
) -> None:
    bad = totals.faults.total()
    over = []
    if bad > max(config.max_bad_images, config.max_bad_share * totals.listed):
        over.append(
            f"{bad} of {totals.listed} pictures are bad; prepare.max_bad_share allows "
            f"{config.max_bad_share:.2%} (and always {config.max_bad_images})"
        )
    for name, faults in totals.faults_by_class.most_common():
        listed = totals.listed_by_class[name]
        if name and faults > max(config.max_bad_images, config.max_bad_class_share * listed):
            over.append(
                f"{faults} of {listed} in class {name}; prepare.max_bad_class_share allows "
                f"{config.max_bad_class_share:.2%}"
            )
    if not totals.rows.total() and not over:
        over.append("not one picture could be used")
    if over:
        report = storage.join(uri, dataset.QUARANTINE)
        _write_set_aside(report, _faults(work, planned))
        kinds = ", ".join(f"{count} {kind}" for kind, count in totals.faults.most_common())
        raise UserError(
            "the error budget is exceeded: "
            + "; ".join(over[:6])
            + f". Classes of fault: {kinds}. Each picture with its reason: {report}"
        )


def _faults(work: str, planned: Plan) -> Iterator[Sequence[SetAside]]:
    for unit in range(planned.num_units):
        yield gather.read_record(work, unit).set_aside


def _write_set_aside(uri: str, groups: Iterator[Sequence[SetAside]]) -> None:
    """All pictures that were set aside, as Parquet, one group in memory at a time."""
    with (
        storage.staged_file(uri) as staged,
        pq.ParquetWriter(staged, QUARANTINE_SCHEMA, compression="zstd") as writer,
    ):
        for group in groups:
            if group:
                rows = [asdict(fault) for fault in group]
                writer.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))


def _write_offsets(work: str, split: str, planned: Plan) -> None:
    """One table for the second pass: where each bucket lies in each unit's spill file."""
    shape = (planned.num_units, planned.num_buckets + 1)
    with storage.staged_file(storage.join(work, f"offsets-{split}.npy")) as staged:
        table = np.lib.format.open_memmap(staged, mode="w+", dtype=np.int64, shape=shape)
        for unit in range(planned.num_units):
            file = gather.read_record(work, unit).spills.get(split)
            table[unit] = file.offsets if file else 0
        table.flush()


def _write_shards(
    config: PrepareConfig, uri: str, work: str, key: str, planned: Plan, totals: Totals
) -> Manifest:
    """Second pass over the shards that have no record yet, then their sum."""
    counts = {
        split: shards.num_shards(
            rows, config.rows_per_shard, config.row_group_rows, planned.num_buckets
        )
        for split, rows in sorted(totals.rows.items())
    }
    done = shards.finished_shards(work)
    todo = [
        {
            "split": split,
            "shard": shard,
            "first_bucket": shard * planned.num_buckets // count,
            "last_bucket": (shard + 1) * planned.num_buckets // count,
        }
        for split, count in counts.items()
        for shard in range(count)
        if (split, shard) not in done
    ]
    classes = tuple(sorted(name for name in totals.listed_by_class if name))
    common = shards.Work(uri, work, key, config.seed, config.masks, classes, config.row_group_rows)
    _run_tasks("writing shards", todo, partial(shards.write_shard, work=common))
    records = {
        split: [shards.read_record(work, split, shard) for shard in range(count)]
        for split, count in counts.items()
    }
    return _manifest(config, uri, work, key, planned, totals, classes, records)


def _manifest(
    config: PrepareConfig,
    uri: str,
    work: str,
    key: str,
    planned: Plan,
    totals: Totals,
    classes: tuple[str, ...],
    records: dict[str, list[ShardRecord]],
) -> Manifest:
    everything = [record for split in records.values() for record in split]
    duplicates = [fault for record in everything for fault in record.duplicates]
    if totals.faults or duplicates:
        groups = (*_faults(work, planned), duplicates)
        _write_set_aside(storage.join(uri, dataset.QUARANTINE), iter(groups))
    train = records.get("train", [])
    pixels = sum(record.pixels for record in train)
    sums = [sum(record.rgb_sums[channel] for record in train) for channel in range(3)]
    converted = sum((Counter(record.converted) for record in everything), Counter[str]())
    red, green, blue = (total / max(pixels, 1) for total in sums)
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
        listed=totals.listed,
        written=sum(record.file.rows for record in everything),
        quarantined=totals.faults.total(),
        duplicates=len(duplicates),
        quarantine=dict(sorted(totals.faults.items())),
        converted=dict(sorted(converted.items())),
        train_pixels=pixels,
        jobs=(key,),
        source=config.source,
    )


def _show(uri: str, manifest: Manifest) -> None:
    """The closing table."""
    table = Table(title=f"prepared {uri}", show_header=False)
    for split, files in manifest.splits.items():
        size = sum(file.bytes for file in files)
        table.add_row(
            split,
            f"{manifest.rows(split):,} pictures",
            f"{len(files)} shards, {size / 1e6:,.1f} MB",
        )
    table.add_row(
        "listed",
        f"{manifest.listed:,}",
        f"= {manifest.written:,} written + {manifest.quarantined:,} set aside "
        f"+ {manifest.duplicates:,} duplicates",
    )
    for name, counts in (("set aside", manifest.quarantine), ("converted", manifest.converted)):
        if counts:
            table.add_row(name, "", ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))
    columns = ", ".join(spec.column for spec in manifest.masks)
    table.add_row("masks", f"{len(manifest.masks)} columns", columns)
    table.add_row("fingerprint", "", manifest.fingerprint)
    console.print(table)

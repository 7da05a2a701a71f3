"""More masks for a prepared dataset: sidecar files beside its shards, no image decoded.

A mask follows from (seed, strategy, side, key, variant), so the keys in a shard are all it takes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.data import shards
from pipelines.data.manifest import (
    Manifest,
    MaskSpec,
    ShardFile,
    Sidecar,
    read_manifest,
    replace_manifest,
)
from pipelines.data.shards import RowGroup
from pipelines.errors import UserError
from pipelines.prepare import card, plan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.progress import console
from pipelines.prepare.shards import mask_cell
from pipelines.prepare.tasks import run_tasks
from pipelines.runtime import cluster


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What one job adds to every shard."""

    uri: str
    work: str
    key: str
    seed: int
    masks: tuple[MaskSpec, ...]


def add_masks(config: PrepareConfig, uri: str) -> str:
    """Give a dataset the masks of the config that it lacks; returns its URI."""
    if config.output is not None and storage.absolute(config.output) != uri:
        raise UserError(
            f"output is '{config.output}'; masks are added to the dataset in '{uri}' itself, so "
            "leave output out"
        )
    old = read_manifest(uri)
    _refuse_ignored(config, old, uri)
    lacking = missing(old.masks, config.masks)
    if not lacking:
        card.complete(uri, old)
        console.print(f"already prepared: {uri} holds these masks")
        return uri
    key = storage.content_key(
        {"stage": "masks", "base": old.fingerprint, "masks": [asdict(spec) for spec in lacking]}
    )
    work = plan.work_uri(uri, key, old, uri)
    common = Addition(uri=uri, work=work, key=key, seed=old.seed, masks=lacking)
    files = [(split, index) for split in old.splits for index in range(len(old.splits[split]))]
    done = set(storage.children(work))
    items = [
        {"split": split, "index": index}
        for split, index in files
        if _record_name(split, index) not in done
    ]
    if config.dry_run:
        columns = ", ".join(spec.column for spec in lacking)
        console.print(f"would add {columns} to {len(files)} shards of {uri}; nothing was written")
        return uri
    with cluster.connect():
        run_tasks("drawing masks", items, partial(_write_sidecar, addition=common, old=old))
    manifest = with_sidecars(old, common)
    try:
        replace_manifest(uri, manifest)
    except FileExistsError:
        raise UserError(
            f"source is '{uri}'; another job changed that dataset meanwhile, and this one changed "
            "nothing. Rerun the same command"
        ) from None
    facts = card.write(uri, manifest)
    plan.clear_work(uri, key)
    card.show(uri, manifest, facts)
    card.track(config, uri, manifest)
    return uri


def _refuse_ignored(config: PrepareConfig, old: Manifest, uri: str) -> None:
    """Settings of a whole dataset cannot change with its masks, and requested ones would be lost.

    Raises:
        UserError: one is neither the default nor what the dataset has.
    """
    ignored = ("labels", "class_list", "label_base", "train", "val", "class_from")
    for name in ("seed", "stored_side", *ignored):
        requested, held = getattr(config, name), getattr(old, name, None)
        if requested not in (getattr(PrepareConfig, name), held):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} is {requested}; adding masks to the dataset in '{uri}' keeps what it has "
                f" ({held}): leave {name} out, or prepare the images into another folder"
            )


def missing(held: tuple[MaskSpec, ...], wanted: tuple[MaskSpec, ...]) -> tuple[MaskSpec, ...]:
    """Columns to add: new ones, and those with more variants or of another version."""
    there = {spec.column: spec for spec in held}
    return tuple(
        spec
        for spec in wanted
        if spec.column not in there
        or there[spec.column].version != spec.version
        or there[spec.column].variants < spec.variants
    )


def _record_name(split: str, index: int) -> str:
    return f"{split}-{index:06}.json"


def _write_sidecar(row: dict[str, Any], addition: Addition, old: Manifest) -> dict[str, int]:
    """Ray task: the sidecar of one shard and its record."""
    split, index = str(row["split"]), int(row["index"])
    file = old.splits[split][index]
    path = f"{file.path.removesuffix('.parquet')}.masks-{addition.key[:8]}.parquet"
    schema = pa.schema(
        pa.field(spec.column, pa.large_binary(), nullable=False) for spec in addition.masks
    )
    options = shards.parquet_options(addition.masks)
    options |= {"compression": "zstd", "compression_level": shards.ZSTD_LEVEL}
    with storage.staged_file(storage.join(addition.uri, path)) as staged:
        with pq.ParquetWriter(staged, schema, **options) as writer:
            for keys in _keys(addition.uri, file):
                columns = {
                    spec.column: shards.large_binary(
                        [mask_cell(addition.seed, spec, key) for key in keys]
                    )
                    for spec in addition.masks
                }
                writer.write_table(pa.Table.from_pydict(columns, schema), row_group_size=len(keys))
        sidecar = Sidecar(
            path=path,
            columns=tuple(spec.column for spec in addition.masks),
            bytes=staged.stat().st_size,
            sha256=storage.sha256_of(staged),
        )
    storage.publish_json(storage.join(addition.work, _record_name(split, index)), asdict(sidecar))
    return {"images": file.rows, "bytes": sidecar.bytes}


def _keys(uri: str, file: ShardFile) -> Iterator[list[str]]:
    """Keys of each row group of a shard."""
    for index, rows in enumerate(file.row_groups):
        group = RowGroup(file, index, rows, 0)
        yield shards.read_row_group(uri, group, ["key"]).column("key").to_pylist()


def with_sidecars(old: Manifest, addition: Addition) -> Manifest:
    """The manifest with every sidecar that the tasks wrote; a new column hides one of its name."""
    added = {spec.column for spec in addition.masks}

    def extended(split: str, index: int, file: ShardFile) -> ShardFile:
        raw = storage.read_json(storage.join(addition.work, _record_name(split, index)))
        sidecar = Sidecar(**{**raw, "columns": tuple(raw["columns"])})
        kept = (
            replace(s, columns=tuple(name for name in s.columns if name not in added))
            for s in file.sidecars
        )
        return replace(file, sidecars=(*(s for s in kept if s.columns), sidecar))

    return replace(
        old,
        splits={
            split: tuple(extended(split, index, file) for index, file in enumerate(files))
            for split, files in old.splits.items()
        },
        masks=(*(spec for spec in old.masks if spec.column not in added), *addition.masks),
        jobs=(*old.jobs, addition.key),
        revision=old.revision + 1,
    )

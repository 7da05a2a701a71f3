"""Look at a finished dataset: print its card, and check every file against the manifest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.data import shards
from pipelines.data.manifest import (
    MANIFEST,
    Manifest,
    ShardFile,
    Sidecar,
    manifest_from_json,
    read_manifest,
    read_raw,
)
from pipelines.errors import UserError
from pipelines.prepare import card
from pipelines.prepare.progress import progress
from pipelines.runtime.progress import plain_console

READS_AHEAD = 4  # hashing and reading release the interpreter lock


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Print the card of a dataset."""

    dataset: str
    """URI of the dataset."""
    revision: int | None = None
    """An earlier revision, from 0; the newest when left out."""
    verify: bool = False
    """Read every file: compare its sha256, columns, rows and labels with the manifest, and the
    manifest with the fingerprint in it."""


def inspect_dataset(config: InspectConfig) -> None:
    """Print the card; with `verify` fail when a file is not what the manifest says."""
    uri = storage.absolute(config.dataset)
    manifest = read_manifest(uri, config.revision)
    if config.verify:
        verify(uri, manifest)
    try:
        facts = card.describe(uri, manifest)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise UserError(
            f"dataset is '{uri}'; a file of it is missing or damaged: {error}. "
            "Find all of them with --verify True"
        ) from None
    plain_console(stderr=False, soft_wrap=True).print(card.as_text(facts))
    card.show(uri, manifest, facts)


def verify(uri: str, manifest: Manifest) -> None:
    """Check every file.

    Raises:
        UserError: with each file that is damaged, and how.
    """
    files = [file for split in manifest.splits.values() for file in split]
    problems = list(_manifest_problems(uri, manifest.revision))
    with ThreadPoolExecutor(READS_AHEAD) as threads, progress("verifying", len(files)) as advance:
        found = threads.map(lambda file: list(_problems(uri, manifest, file)), files)
        for file, wrong in zip(files, found, strict=True):
            problems += wrong
            advance(1, file.rows, file.bytes)
    if problems:
        raise UserError(
            f"dataset is '{uri}'; {len(problems)} of its files are not what the manifest says:\n  "
            + "\n  ".join(problems[:50])
            + "\nPrepare it again into another folder"
        )
    plain_console(stderr=False).print(f"verified: {len(files)} shards are as they were committed")


def _manifest_problems(uri: str, revision: int) -> Iterator[str]:
    """Whether the manifest still has the fingerprint that was written into it."""
    raw = read_raw(uri, revision)
    written, found = raw["fingerprint"], manifest_from_json(raw, uri).fingerprint
    if found != written:
        yield f"{MANIFEST}: its fingerprint is {found[:16]}..., it says {written[:16]}..."


def _problems(uri: str, manifest: Manifest, file: ShardFile) -> Iterator[str]:
    """What is wrong with one shard and its sidecars."""
    parts: tuple[ShardFile | Sidecar, ...] = (file, *file.sidecars)
    wrong = [found for part in parts for found in _altered(uri, part)]
    yield from wrong
    if wrong:
        return
    try:
        yield from _content_problems(uri, manifest, file)
    except (UserError, pa.ArrowException) as error:
        yield f"{file.path}: {error}"


def _altered(uri: str, part: ShardFile | Sidecar) -> Iterator[str]:
    """Whether a file is another one than was committed."""
    try:
        digest = storage.sha256_of_uri(storage.join(uri, part.path))
    except FileNotFoundError:
        yield f"{part.path}: missing"
        return
    if digest != part.sha256:
        yield f"{part.path}: sha256 is {digest[:16]}..., the manifest has {part.sha256[:16]}..."


def _content_problems(uri: str, manifest: Manifest, file: ShardFile) -> Iterator[str]:
    with storage.open_input(storage.join(uri, file.path)) as opened:
        footer = pq.read_metadata(opened)
    rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if rows != file.row_groups or sum(rows) != file.rows:
        yield f"{file.path}: row groups hold {rows}, the manifest has {file.row_groups}"
        return
    columns = ["label", *(spec.column for spec in manifest.masks)]
    for index, count in enumerate(file.row_groups):
        table = shards.read_row_group(uri, shards.RowGroup(file, index, count, 0), columns)
        labels = pc.min_max(table.column("label")).as_py()
        lowest, highest = labels["min"] or 0, labels["max"] or 0
        if lowest < 0 or highest >= max(len(manifest.classes), 1):
            yield f"{file.path}: labels {lowest} to {highest} for {len(manifest.classes)} classes"
        for spec in manifest.masks:
            sizes = set(pc.binary_length(table.column(spec.column)).to_pylist())
            if sizes != {spec.variants * spec.bytes_per_mask}:
                yield f"{file.path}: {spec.column} holds cells of {sorted(sizes)} bytes"

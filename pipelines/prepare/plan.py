"""Pieces of a source -> units of work, and the key of the job.

The pieces pass through a local temporary file, never through memory: first their digest gives the
key of the job, then units are cut and stored beside the work, where a rerun finds them again. How
units are cut has no influence on the shards; it only sets how much a kill can cost. What is stored
holds no password and no signature of a URL: the tasks get those from the job.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from pipelines import storage
from pipelines.data.manifest import Manifest
from pipelines.errors import UserError, redact
from pipelines.prepare.sources.piece import UNKNOWN, Piece
from pipelines.prepare.sources.placing import is_guess

UNIT_BYTES = (8 << 20, 256 << 20)  # smallest and largest; a kill costs one unit per worker
UNIT_PIECES = 4096
UNITS_WANTED = 32  # for a small source: enough to keep a machine's cores equally busy
TYPICAL_BYTES = 110_000  # of an ImageNet image
BUCKET_BYTES = 128 << 20
BUCKETS = (64, 1024)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pieces of a source, in a temporary file, and their sums."""

    spool: IO[str]
    pieces: int
    files: int
    """Pieces that are one image each."""
    bytes: int
    has_validation: bool
    """Whether the source says which images are for validation."""
    has_classes: bool
    """Whether the place of an image says its class."""
    has_guesses: bool
    """Whether archives are in it whose folders are known only when they are read."""
    digest: str
    """sha256 of all keys and sizes in the source's order."""
    secrets: dict[str, str]
    """URI without its login or signature -> the whole, of those that have one."""

    def __iter__(self) -> Iterator[Piece]:
        """All pieces, from the file."""
        self.spool.seek(0)
        for line in self.spool:
            yield Piece(*json.loads(line))


@contextmanager
def listing(pieces: Iterable[Piece]) -> Iterator[Listing]:
    """Run through all pieces once and keep them in a temporary file for the block."""
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    secrets: dict[str, str] = {}
    with tempfile.TemporaryFile("w+", prefix="listing-") as spool:
        for piece in pieces:
            shown = redact(piece.uri)
            if shown != piece.uri and secrets.setdefault(shown, piece.uri) != piece.uri:
                raise UserError(f"'{shown}' is listed with two logins or signatures; keep one")
            spool.write(json.dumps(piece) + "\n")
            digest.update(json.dumps(_identity(piece), sort_keys=True).encode())
            counts["pieces"] += 1
            counts["bytes"] += weight(piece)
            counts["files"] += piece.kind == "file"
            counts["val"] += piece.split == "val"
            counts["guesses"] += is_guess(piece)
            counts["classes"] += piece.class_name is not None
        yield Listing(
            spool=spool,
            pieces=counts["pieces"],
            files=counts["files"],
            bytes=counts["bytes"],
            has_validation=counts["val"] > 0,
            has_classes=counts["classes"] > 0,
            has_guesses=counts["guesses"] > 0,
            digest=digest.hexdigest(),
            secrets=secrets,
        )


def _identity(piece: Piece) -> dict[str, Any]:
    """What the images of a piece and their places follow from."""
    everything = piece._asdict()
    unseen = {"uri", "differs"} if piece.differs else {"uri", "differs", "layout", "folder"}
    return {name: value for name, value in everything.items() if name not in unseen}


def hide(piece: Piece) -> Piece:
    """As it is stored: without a login or a signature in its URI."""
    return piece._replace(uri=redact(piece.uri))


def reveal(piece: Piece, secrets: Mapping[str, str]) -> Piece:
    """As it can be read, with those of `Listing.secrets`."""
    return piece._replace(uri=secrets.get(piece.uri, piece.uri))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the work is cut."""

    num_units: int
    num_buckets: int
    pieces: int
    bytes: int
    has_validation: bool
    folders: dict[str, int] = field(default_factory=dict)
    """Images by folder of the source, where some of its folders are known only when all is read."""


def weight(piece: Piece) -> int:
    """Bytes to read, or a guess."""
    return TYPICAL_BYTES if piece.bytes == UNKNOWN else piece.bytes


def cut(found: Listing) -> Iterator[list[Piece]]:
    """Runs of pieces, each about as much work as the others."""
    smallest, largest = UNIT_BYTES
    limit = min(max(found.bytes // UNITS_WANTED, smallest), largest)
    unit: list[Piece] = []
    size = 0
    for piece in found:
        if unit and (size + weight(piece) > limit or len(unit) == UNIT_PIECES):
            yield unit
            unit, size = [], 0
        unit.append(piece)
        size += weight(piece)
    if unit:
        yield unit


def make(found: Listing, work: str, folders: dict[str, int] | None = None) -> Plan:
    """Store the units under `work`, or find those of an earlier attempt."""
    uri = storage.join(work, "plan.json")
    if storage.exists(uri):
        return Plan(**storage.read_json(uri))
    num_units = 0
    for unit in cut(found):
        text = "".join(json.dumps(hide(piece)) + "\n" for piece in unit)
        storage.publish(unit_uri(work, num_units), text.encode())
        num_units += 1
    plan = Plan(
        num_units=num_units,
        num_buckets=num_buckets(found),
        pieces=found.pieces,
        bytes=found.bytes,
        has_validation=found.has_validation,
        folders=(folders or {}) if found.has_guesses else {},
    )
    storage.publish_json(uri, asdict(plan))
    return plan


def num_buckets(found: Listing) -> int:
    """Parts of the shuffle, and the most shards that a split can have."""
    smallest, largest = BUCKETS
    wanted = 1 << max(found.bytes // BUCKET_BYTES, 1).bit_length()
    return min(max(wanted, smallest), largest)


def work_uri(uri: str, key: str, old: Manifest | None, source: str) -> str:
    """Where a job leaves what it has finished.

    Args:
        uri: the dataset.
        key: of the job.
        old: the dataset that it adds to, since what is a duplicate follows from it.
        source: where the images are read, since the plan holds their places.
    """
    base = (old.fingerprint, old.revision) if old else None
    # What an earlier version left, which drew otherwise, is not used.
    rest = storage.content_key({"base": base, "source": source, "draw": "by class"})
    return storage.join(uri, "_work", f"{key[:16]}-{rest[:16]}")


def clear_work(uri: str, key: str) -> None:
    """Remove all that was left by a job that is committed; other jobs may be at work beside it."""
    folder = storage.join(uri, "_work")
    for name in storage.children(folder):
        if name.startswith(key[:16]):
            storage.remove(storage.join(folder, name))
    storage.remove_if_empty(folder)


def unit_uri(work: str, unit: int) -> str:
    """Where the pieces of a unit are listed."""
    return storage.join(work, "plan", f"{unit:06}.jsonl")


def read_unit(
    work: str, unit: int, secrets: Mapping[str, str], *, keep_splits: bool
) -> list[Piece]:
    """The pieces of a unit; without their splits where the source has train but no val."""
    lines = storage.read_bytes(unit_uri(work, unit)).splitlines()
    pieces = [reveal(Piece(*json.loads(line)), secrets) for line in lines]
    return pieces if keep_splits else [piece._replace(split=None) for piece in pieces]

"""What became of a unit of the first pass: a record, which makes the unit done."""

from dataclasses import dataclass
from typing import NamedTuple

from pipelines import storage


@dataclass(frozen=True, kw_only=True)
class QuarantinedRow:
    """An image that is not in the shards, and why."""

    key: str
    class_name: str | None
    split: str | None
    """None where it would have been drawn."""
    sha256: str | None
    """Of the bytes in the source; unknown where they could not be read."""
    fault: str
    message: str


@dataclass(frozen=True, kw_only=True)
class SpillFile:
    """Images of a unit that belong to one group."""

    path: str
    group: str
    """As `ingest.Shuffle.group` has it."""
    rows: int
    bytes: int
    offsets: tuple[int, ...]
    """Where each bucket begins, and where the last one ends."""


class Conflict(NamedTuple):
    """An image that the dataset holds and that the source now says something else of."""

    key: str
    held: str
    now: str


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What became of a unit."""

    listed: int
    bytes: int
    listed_by_class: dict[str, int]
    classes: tuple[str, ...]
    """Names of the class numbers in the files of the unit."""
    set_aside: tuple[QuarantinedRow, ...]
    spills: tuple[SpillFile, ...]
    not_read: dict[str, int]
    """What is in archives and tables and not read, by kind."""
    folders: dict[str, int]
    """Images by folder of the source, where names alone placed them."""
    bare_names: dict[str, int]
    """Images by the entry of the label list that gave their class, of entries without a folder."""
    conflicts: dict[str, tuple[int, Conflict]]
    """`class` or `split` -> how many images have lost it or have another, and the first of them."""


def record_uri(work: str, unit: int) -> str:
    """Where the record of a unit stands."""
    return storage.join(work, "units", f"{unit:06}.json")


def read_record(work: str, unit: int) -> UnitRecord:
    """The record of a finished unit."""
    raw = storage.read_json(record_uri(work, unit))
    raw["set_aside"] = tuple(QuarantinedRow(**fault) for fault in raw["set_aside"])
    raw["spills"] = tuple(SpillFile(**file) for file in raw["spills"])
    raw["classes"] = tuple(raw["classes"])
    raw["conflicts"] = {
        what: (count, Conflict(*first)) for what, (count, first) in raw["conflicts"].items()
    }
    return UnitRecord(**raw)


def finished_units(work: str) -> set[int]:
    """Units with a record."""
    names = storage.children(storage.join(work, "units"))
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}

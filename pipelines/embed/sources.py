"""The images of any source that `prepare` reads, or of a prepared dataset, in units of work.

A unit is what one actor does at once: some pieces of a source, or a row group of a dataset. How a
source is cut into units follows from its listing alone, so a rerun finds the same ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.data import shards
from pipelines.data.manifest import Manifest, is_dataset, read_manifest
from pipelines.errors import UserError
from pipelines.prepare import plan
from pipelines.prepare.plan import Listing
from pipelines.prepare.progress import listing_progress
from pipelines.prepare.source_config import SourceConfig
from pipelines.prepare.sources import listing
from pipelines.prepare.sources.labelled import labelled
from pipelines.prepare.sources.labels import Labels, read_labels
from pipelines.prepare.sources.member import Beside
from pipelines.prepare.sources.names import Found
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.readers import members
from pipelines.prepare.unread import not_read

Unit = dict[str, Any]
"""Plain values that say what to read; `unit` is its number."""


class Listed(NamedTuple):
    """What there is to embed."""

    units: Callable[[], Iterator[Unit]]
    """All units in order; may be called again."""
    identity: str
    """Digest of all names and sizes, or fingerprint of the dataset."""
    others: Counter[str]
    """What is there and not read, by kind."""
    folders: Counter[str]
    """Images by folder, where some folders are known only when archives are read."""
    notes: list[str]
    """What a person should know of splits and classes."""
    labels: Labels | None
    """The label list that was given."""
    secrets: dict[str, str]
    """Logins and signatures of the source; see `plan.Listing`."""


class Encoded(NamedTuple):
    """One image as its source has it."""

    key: str
    label: str | None
    """Name of its class."""
    data: bytes | None
    fault: str
    """Why there are no bytes; empty where there are."""


@contextmanager
def find(config: SourceConfig) -> Iterator[Listed]:
    """List a source, for the block; nothing but names, sizes and headers is read.

    Raises:
        UserError: there is nothing at that place, or no image in it; or a flag that means nothing
            for a dataset.
    """
    uris = tuple(map(storage.absolute, config.sources))
    if len(uris) == 1 and is_dataset(uris[0]):
        _require_plain(config)
        manifest = read_manifest(uris[0])
        units = partial(_units_of_dataset, uris[0], manifest)
        yield Listed(units, manifest.fingerprint, Counter(), Counter(), [], None, {})
        return
    learned = Found.empty()
    labels = (
        read_labels(config.labels, config.class_list, config.label_base, learned.notes)
        if config.labels
        else None
    )
    pieces = listing.pieces(uris, None, config.rules, learned)
    with plan.listing(listing_progress(pieces)) as found:
        if found.pieces == 0:
            raise UserError(
                f"--source is '{config.shown_source}'; there is no image in it. Files there: "
                f"{not_read(learned.others) or 'none'}"
            )
        folders = learned.folders if found.has_guesses else Counter[str]()
        yield Listed(
            partial(_units_of_listing, found),
            found.digest,
            learned.others,
            folders,
            learned.notes,
            labels,
            found.secrets,
        )


def _require_plain(config: SourceConfig) -> None:
    for name in ("train", "val", "class_from", "labels", "class_list", "label_base"):
        if getattr(config, name) not in (None, ()):
            raise UserError(
                f"--{name.replace('_', '-')} is given, and --source '{config.shown_source}' is a "
                "prepared dataset, which has its splits and classes: leave the flag out"
            )


def _units_of_dataset(uri: str, manifest: Manifest) -> Iterator[Unit]:
    places = [
        (split, number)
        for split in sorted(manifest.splits)
        for number, _ in enumerate(shards.row_groups(manifest, split))
    ]
    for unit, (split, number) in enumerate(places):
        yield {"unit": unit, "dataset": uri, "split": split, "group": number}


def _units_of_listing(found: Listing) -> Iterator[Unit]:
    for unit, pieces in enumerate(plan.cut(found)):
        yield {"unit": unit, "pieces": [list(piece) for piece in pieces]}


def hide(unit: Unit) -> Unit:
    """As it is stored: without logins and signatures."""
    return _with_pieces(unit, plan.hide)


def reveal(unit: Unit, secrets: Mapping[str, str]) -> Unit:
    """As it can be read, with those of `Listed.secrets`."""
    return _with_pieces(unit, lambda piece: plan.reveal(piece, secrets))


def _with_pieces(unit: Unit, change: Callable[[Piece], Piece]) -> Unit:
    if "pieces" not in unit:
        return unit
    return {**unit, "pieces": [list(change(Piece(*values))) for values in unit["pieces"]]}


def read(
    unit: Unit,
    labels: Labels | None = None,
    bare_names: Counter[str] | None = None,
    beside: Beside | None = None,
) -> Iterator[Encoded]:
    """The images of a unit.

    Args:
        unit: what to read.
        labels: a label list, which comes before what places say.
        bare_names: counts how many images an entry of it without a folder named.
        beside: counts what is in archives and not read.

    Raises:
        OSError: the storage failed for longer than we try.
        UserError: a file of the dataset is not what its manifest says.
    """
    if "dataset" in unit:
        yield from _of_dataset(unit["dataset"], unit["split"], unit["group"])
        return
    for values in unit["pieces"]:
        for found in members(Piece(*values), beside):
            member = labelled(found, labels, Counter() if bare_names is None else bare_names)
            if member.split == "test" and beside is not None:
                beside.others["image in the test part of the label list"] += 1
                continue
            fault = "" if member.fault is None else f"{member.fault.kind}: {member.fault}"
            yield Encoded(member.key, member.class_name, member.data, fault)


def _of_dataset(uri: str, split: str, number: int) -> Iterator[Encoded]:
    manifest = read_manifest(uri)
    group = shards.row_groups(manifest, split)[number]
    table = shards.read_row_group(uri, group, ["key", "label", "image"])
    for row in range(table.num_rows):
        label = table.column("label")[row].as_py()
        name = None if label is None or label < 0 else manifest.classes[label]
        yield Encoded(
            table.column("key")[row].as_py(), name, table.column("image")[row].as_py(), ""
        )


def find_image(unit: Unit, key: str) -> bytes | None:
    """The bytes of one image of a unit; None where it is not there any more."""
    narrowed = unit
    if "pieces" in unit:  # of single files only the one is opened
        pieces = [Piece(*values) for values in unit["pieces"]]
        wanted = [list(p) for p in pieces if p.kind != "file" or p.key == key]
        narrowed = {**unit, "pieces": wanted}
    return next((image.data for image in read(narrowed) if image.key == key), None)

"""The shard contract: what a prepared dataset is, on disk and in an object store.

A dataset is a folder at a URI. It exists exactly when its `manifest.json` exists, which is
written last, once, and names every file with rows, bytes and sha256. Readers open what the
manifest names and nothing else.

    manifest.json
    train/*.parquet            key, label, image, sha256, mask_<strategy>_<side> ...
    val/*.parquet
    train/*.masks-*.parquet    sidecars: mask columns that were added later
    train/*.labels-*.parquet   sidecars: labels that were corrected later
    quarantine-<job>.parquet   images that a job quarantined, with the reason (when there are any);
                               -<job>-<n> of its n-th run on the dataset
    card.html  card.json       what a person wants to know, with a contact sheet
    revisions/*.json           once there is an addition: the first manifest and those of all
                               additions; manifest.json is the newest

`image` is a JPEG (RGB, upright, shorter side at most `stored_side` px) on uncompressed pages;
`sha256` (nullable) is that of the bytes in the source, so that a row can be traced to its file.
A mask cell holds `variants` packed bit masks of side x side px one after the other: True is
hidden, row-major, numpy packbits order. Masks follow from (mask_seed, strategy, side, key,
variant) alone. A column may stand in the shard itself or in a sidecar file with the same rows.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ce_model.masks import MASK_VERSION, STRATEGIES, Strategy
from pipelines import storage
from pipelines.errors import UserError, redact

FORMAT_VERSION = 1


MANIFEST = "manifest.json"


SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """One mask column: which holes it holds."""

    strategy: Strategy
    side: int
    """Side of the square mask, px."""
    variants: int
    """Masks per row; 1 is enough for `central`, which never differs."""
    version: int = MASK_VERSION
    """Version of the mask functions that drew them."""

    @property
    def column(self) -> str:
        """Name in the shards."""
        return mask_column(self.strategy, self.side)

    @property
    def bytes_per_mask(self) -> int:
        """Packed size of one mask."""
        return -(-(self.side**2) // 8)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """A file that holds further columns of a shard, row by row."""

    path: str
    columns: tuple[str, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One Parquet file of a split; paths are relative to the dataset."""

    path: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    sidecars: tuple[Sidecar, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    splits: dict[str, tuple[ShardFile, ...]]
    classes: tuple[str, ...]
    """Class names by label; empty when the images have none."""
    mean_rgb: tuple[float, float, float]
    """Mean colour of the stored training images, 0..255: what fills a hole."""
    masks: tuple[MaskSpec, ...]
    stored_side: int
    seed: int
    """Seed of the shuffle, the split and the masks."""
    listed: int
    written: int
    quarantined: int
    duplicates: int
    quarantine: dict[str, int] = field(default_factory=dict)
    """Images quarantined, by class of fault."""
    converted: dict[str, int] = field(default_factory=dict)
    """Images that were written after a conversion, by kind (grey, cmyk, rotated ...)."""
    train_pixels: int = 0
    """Pixels behind `mean_rgb`; with it a later addition keeps the mean exact."""
    jobs: tuple[str, ...] = ()
    """Keys of the jobs that made this dataset; not part of the fingerprint."""
    revision: int = 0
    """Counts the additions to the dataset; not part of the fingerprint."""
    source: str = ""
    """Where the images came from, for people; not part of the fingerprint."""
    not_read: dict[str, int] = field(default_factory=dict)
    """What was in the source and not read, by kind, when the last job read it; not part of the
    fingerprint."""
    contradictions: int = 0
    """Duplicates whose twin has another class; not part of the fingerprint."""
    relabelled: int = 0
    """Images that were given another class after they were written; not part of the fingerprint."""
    labels_since: int = 0
    """Jobs before the last one that did so; not part of the fingerprint."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """The count that must always hold; and no password in what earlier versions wrote."""
        object.__setattr__(self, "source", redact(self.source))
        if self.listed != self.written + self.quarantined + self.duplicates:
            raise ValueError(
                f"listed {self.listed} != written {self.written} + quarantined "
                f"{self.quarantined} + duplicates {self.duplicates}"
            )

    @property
    def fingerprint(self) -> str:
        """sha256 of everything a training run can see; the same wherever it was made."""
        seen = asdict(self)
        for unseen in (
            "source",
            "jobs",
            "revision",
            "listed",
            "quarantined",
            "duplicates",
            "quarantine",
            "not_read",
            "contradictions",
            "relabelled",
            "labels_since",
        ):
            del seen[unseen]
        return storage.content_key(seen)

    def is_done(self, job: str) -> bool:
        """Whether the dataset is what a job makes of it: no later one changed classes."""
        return job in self.jobs[self.labels_since :]

    def rows(self, split: str) -> int:
        """Images of a split."""
        return sum(file.rows for file in self.splits.get(split, ()))

    def mask_spec(self, strategy: Strategy, side: int) -> MaskSpec:
        """The mask column of a strategy at a side."""
        for spec in self.masks:
            if (spec.strategy, spec.side) == (strategy, side):
                return spec
        held = ", ".join(spec.column for spec in self.masks)
        raise UserError(
            f"the dataset has no column {mask_column(strategy, side)}; it holds {held}. "
            f"Add it without decoding an image: python jobs/prepare.py --source DATASET "
            f"--strategies {strategy} --sides {side}"
        )


def mask_column(strategy: str, side: int) -> str:
    """Column name of a mask."""
    return f"mask_{strategy}_{side}"


def is_dataset(uri: str) -> bool:
    """Whether a committed dataset is there, of whatever version."""
    return _raw_manifest(uri) is not None


def _raw_manifest(uri: str) -> dict[str, Any] | None:
    """What the manifest says; None without one, or where another program's has its name.

    Raises:
        UserError: it was a dataset's, since a card lies beside it, and is JSON no longer.
    """
    place = storage.join(uri, MANIFEST)
    if not storage.exists(place):
        return None
    try:
        raw = storage.read_json(place)
    except storage.NotJsonError as error:
        if storage.exists(storage.join(uri, "card.json")):
            raise _altered(uri, error.__cause__ or error) from None
        return None
    return raw if isinstance(raw, dict) and {"format_version", "splits"} <= raw.keys() else None


def find_manifest(uri: str) -> Manifest | None:
    """The manifest of a committed dataset; None where there is none.

    Raises:
        UserError: this version cannot read it.
    """
    raw = _raw_manifest(uri)
    return None if raw is None else manifest_from_json(raw, uri)


def read_manifest(uri: str, revision: int | None = None) -> Manifest:
    """The manifest of a committed dataset; of its newest revision, or of an earlier one.

    Raises:
        UserError: there is none, or this version cannot read it.
    """
    manifest = find_manifest(uri)
    if manifest is None:
        raise UserError(
            f"'{uri}' is not a prepared dataset: it has no {MANIFEST} of one. Make one with "
            "python jobs/prepare.py --source IMAGES --output DATASET"
        )
    if revision in (None, manifest.revision):
        return manifest
    return manifest_from_json(storage.read_json(_earlier_uri(uri, revision or 0)), uri)


def _earlier_uri(uri: str, revision: int) -> str:
    names = _revisions(uri)
    name = f"{revision:06}.json"
    if name not in names:
        held = ", ".join(str(int(each.removesuffix(".json"))) for each in names)
        raise UserError(f"'{uri}' has no revision {revision}; it has {held or 'one'}")
    return storage.join(uri, "revisions", name)


def _revisions(uri: str) -> list[str]:
    """Names of the files of all revisions, rising; a kill may leave others beside them."""
    names = storage.children(storage.join(uri, "revisions"))
    return [name for name in names if name.endswith(".json")]


def read_raw(uri: str, revision: int) -> dict[str, Any]:
    """What the file of a revision says, unchecked."""
    newest: dict[str, Any] = storage.read_json(storage.join(uri, MANIFEST))
    if newest.get("revision", 0) == revision:
        return newest
    earlier: dict[str, Any] = storage.read_json(_earlier_uri(uri, revision))
    return earlier


def manifest_from_json(raw: dict[str, Any], uri: str) -> Manifest:
    """Parse what `write_manifest` wrote.

    Raises:
        UserError: another version wrote it, or it is not as it was written.
    """
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"'{uri}' has dataset format {version!r}; this program reads {FORMAT_VERSION}. "
            "Prepare the images again with python jobs/prepare.py"
        )
    try:
        return _parse(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _altered(uri, error) from None


def _altered(uri: str, error: BaseException) -> UserError:
    return UserError(
        f"{MANIFEST} in '{uri}' is not as jobs/prepare.py wrote it ({type(error).__name__}: "
        f"{error}): restore it from a copy (the newest one in revisions, where there is one), or "
        "prepare the images again into another folder"
    )


def _parse(raw: dict[str, Any]) -> Manifest:
    splits = {
        name: tuple(
            ShardFile(
                **{
                    **file,
                    "row_groups": tuple(file["row_groups"]),
                    "sidecars": tuple(
                        Sidecar(**{**sidecar, "columns": tuple(sidecar["columns"])})
                        for sidecar in file["sidecars"]
                    ),
                }
            )
            for file in files
        )
        for name, files in raw["splits"].items()
    }
    masks = tuple(MaskSpec(**spec) for spec in raw["masks"])
    tuples = {name: tuple(raw[name]) for name in ("classes", "mean_rgb", "jobs")}
    known = {name: value for name, value in raw.items() if name != "fingerprint"}
    return Manifest(**{**known, **tuples, "splits": splits, "masks": masks})


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Commit a dataset: from now on it exists.

    Raises:
        FileExistsError: another job committed this dataset first.
    """
    storage.publish_json(storage.join(uri, MANIFEST), _content(manifest), exclusive=True)


def replace_manifest(uri: str, manifest: Manifest) -> None:
    """Commit an addition: `manifest` follows the revision before it.

    Exactly one job can make a revision: its file is created exclusively, and manifest.json is
    its copy. A job that was killed between the two is completed by the next one.

    Raises:
        FileExistsError: another job made this revision first; it is in place now.
    """
    _keep_first_revision(uri)
    revision = storage.join(uri, "revisions", f"{manifest.revision:06}.json")
    try:
        storage.publish_json(revision, _content(manifest), exclusive=True)
    except FileExistsError:
        _place_newest_revision(uri)
        if manifest_from_json(storage.read_json(revision), uri).jobs != manifest.jobs:
            raise
    else:
        _place_newest_revision(uri)


def _keep_first_revision(uri: str) -> None:
    """Before the first addition manifest.json is the only copy of what was committed."""
    first = storage.join(uri, "revisions", f"{0:06}.json")
    if not storage.exists(first) and not _revisions(uri):
        with suppress(FileExistsError):
            content = storage.read_json(storage.join(uri, MANIFEST))
            storage.publish_json(first, content, exclusive=True)


def _place_newest_revision(uri: str) -> None:
    """Copy it to manifest.json; again while others make more, or a slow job would undo theirs."""
    revisions = storage.join(uri, "revisions")
    placed = None
    while (newest := _revisions(uri)[-1]) != placed:
        content = storage.read_json(storage.join(revisions, newest))
        storage.publish_json(storage.join(uri, MANIFEST), content)
        placed = newest


def _content(manifest: Manifest) -> dict[str, Any]:
    return {**asdict(manifest), "fingerprint": manifest.fingerprint}


def quarantine_uri(uri: str, job: str, before: int = 0) -> str:
    """Where a job writes what it quarantines, which ran so many times before on this dataset."""
    again = f"-{before + 1}" if before else ""
    return storage.join(uri, f"quarantine-{job[:8]}{again}.parquet")


def default_masks(
    sides: tuple[int, ...], strategies: tuple[Strategy, ...] = STRATEGIES[:3], variants: int = 2
) -> tuple[MaskSpec, ...]:
    """The default mask columns of a dataset."""
    return tuple(
        MaskSpec(strategy=s, side=side, variants=1 if s == "central" else variants)
        for side in sides
        for s in strategies
    )

"""What a store holds that nothing needs: found, with its reason and its size, and not touched.

checkpoints    of finished trainings, but the last one, from which a longer training continues
trainings      begun, not finished, and left
preparations   the same, and work folders of preparations that were left
revisions      manifests of a dataset before the newest
datasets       of the store itself, which no training, run or registered model names
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipelines import storage
from pipelines.data.manifest import MANIFEST, find_manifest
from pipelines.models.checkpoint import STATE
from pipelines.storage import commits
from pipelines.tracking.references import References

DAY_S = 86400.0
LEASE = "lease"  # of a training, as in pretrain.run, which needs torch
WORK = "_work"  # of a dataset, while it is prepared


@dataclass(frozen=True)
class Spare:
    """Something that may go."""

    kind: str
    uri: str
    why: str
    usage: storage.Usage
    first: str = ""
    """What goes before the rest, so that nobody takes it for whole meanwhile."""
    lease: str = ""
    """Held while it is removed: whoever needs the place waits, and makes it anew."""


@dataclass(frozen=True)
class Store:
    """A store at a moment."""

    uri: str
    references: References
    now: float
    older_than_days: float

    def trainings(self) -> Iterator[str]:
        """Every stage of pretraining."""
        home = storage.join(self.uri, "pretrain")
        yield from (storage.join(home, name) for name in storage.children(home))

    def datasets(self) -> Iterator[str]:
        """Every dataset, or what should become one, without an --output of its own."""
        home = storage.join(self.uri, "prepare")
        yield from (storage.join(home, name) for name in storage.children(home))

    def is_old(self, found: storage.Usage) -> bool:
        """Whether nothing has changed for as long as was asked."""
        return found.files > 0 and self.now - found.changed >= self.older_than_days * DAY_S

    @cached_property
    def trained_on(self) -> frozenset[str]:
        """Fingerprints and folder names of datasets that finished trainings of this store used."""
        found = [c for c in map(commits.read_commit, self.trainings()) if c is not None]
        names = {str(c.get("dataset", "")).rstrip("/").rpartition("/")[2] for c in found}
        return frozenset(names | {str(c.get("dataset_fingerprint", "")) for c in found})

    def days(self, found: storage.Usage) -> str:
        """How long nothing has changed, in words."""
        return f"unchanged for {(self.now - found.changed) / DAY_S:.0f} days"


def spare_checkpoints(store: Store) -> Iterator[Spare]:
    """Those that only a restart would have needed."""
    for stage in store.trainings():
        home = storage.join(stage, "checkpoints")
        names = [name for name in storage.children(home) if name.startswith("step-")]
        if len(names) > 1 and commits.is_committed(stage):
            for name in sorted(names)[:-1]:
                uri = storage.join(home, name)
                why = "its training has finished"
                yield Spare("checkpoint", uri, why, storage.usage(uri), storage.join(uri, STATE))


def left_trainings(store: Store) -> Iterator[Spare]:
    """Begun and not finished; one whose model is registered all the same stays."""
    registered = {key[:16] for key in store.references.registered}
    for stage in store.trainings():
        if commits.is_committed(stage) or stage.rpartition("/")[2] in registered:
            continue
        found = storage.usage(stage)
        if store.is_old(found):
            lease = storage.join(stage, LEASE)
            yield Spare("training", stage, f"not finished, {store.days(found)}", found, lease=lease)


def left_preparations(store: Store) -> Iterator[Spare]:
    """Datasets without a manifest, and work that was left in finished ones."""
    for uri in store.datasets():
        is_whole = storage.exists(storage.join(uri, MANIFEST))
        place = storage.join(uri, WORK) if is_whole else uri
        found = storage.usage(place)
        # A job at work writes shards beside its work folder.
        if store.is_old(found) and store.is_old(storage.usage(uri)):
            what = "work of a preparation that was left" if is_whole else "not finished"
            yield Spare("preparation", place, f"{what}, {store.days(found)}", found)


def old_revisions(store: Store) -> Iterator[Spare]:
    """All manifests of additions but the newest, with which a damaged manifest is mended."""
    for uri in store.datasets():
        home = storage.join(uri, "revisions")
        for name in storage.children(home)[:-1]:
            place = storage.join(home, name)
            size = storage.Usage(storage.size(place), 1, 0.0)
            yield Spare("revision", place, "a newer one is in place", size)


def unused_datasets(store: Store) -> Iterator[Spare]:
    """Named by no finished training, no run and no registered model."""
    named = store.references.datasets | store.trained_on
    for uri in store.datasets():
        manifest = find_manifest(uri)
        if manifest is None or {manifest.fingerprint, uri.rpartition("/")[2]} & named:
            continue
        found = storage.usage(uri)
        if store.is_old(found):
            why = f"no run or training names it, {store.days(found)}"
            yield Spare("dataset", uri, why, found, storage.join(uri, MANIFEST))


def held_twice(store: Store) -> tuple[int, int]:
    """Models that lie in the store and in MLflow: how many, and their bytes in the store."""
    count = size = 0
    for stage in store.trainings():
        commit = commits.read_commit(stage)
        if commit is not None and "model_uri" in commit:
            count += 1
            size += storage.usage(storage.join(stage, "model")).bytes
    return count, size

"""List what nothing needs, remove it, and let no job lose what it has begun to use."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import chain

from pipelines import storage
from pipelines.clean import find
from pipelines.clean.config import CleanConfig
from pipelines.clean.find import Spare, Store
from pipelines.errors import UserError, first_line
from pipelines.runtime.progress import plain_console
from pipelines.storage import commits, lease
from pipelines.tracking.client import may_pass, tracking_uri
from pipelines.tracking.references import References, references

LEASE_S = 60.0
BEGINNING_S = 10.0  # from a job's look at its dataset to the lease of its training


def clean_store(config: CleanConfig) -> dict[str, int]:
    """Remove what nothing needs; returns the bytes by kind.

    Raises:
        UserError: there is no such store, or nobody can say what its runs refer to.
    """
    console = plain_console()
    uri = storage.absolute(config.store)
    storage.require_folder(uri, "store")
    server = tracking_uri(config.tracking_uri, config.store)
    store = Store(uri, _references(server), time.time(), config.older_than_days)
    found = list(
        chain(
            find.spare_checkpoints(store),
            find.left_trainings(store),
            find.left_preparations(store),
            find.old_revisions(store),
            find.unused_datasets(store),
        )
    )
    freed = Counter[str]()
    for spare in found:
        kept = None if config.dry_run else _remove(spare, store)
        if kept is None:
            freed[spare.kind] += spare.usage.bytes
        verb = "kept" if kept else "would remove" if config.dry_run else "removed"
        size = f"{spare.usage.bytes / 1e6:,.1f} MB"
        console.print(
            f"{verb} {spare.kind} {spare.uri}, {size}: {kept or spare.why}", soft_wrap=True
        )
    total = f"{sum(freed.values()) / 1e6:,.1f} MB"
    console.print(f"{total} {'would be' if config.dry_run else 'were'} freed in {uri}")
    count, doubled = find.held_twice(store)
    if count:
        console.print(
            f"{count} models lie in the store and in MLflow ({doubled / 1e6:,.1f} MB each way): "
            "jobs read those of the store, the registry those of MLflow; neither is removed",
            soft_wrap=True,
        )
    return dict(freed)


def _references(server: str) -> References:
    try:
        return references(server)
    except Exception as error:
        if not may_pass(error):
            raise
        raise UserError(
            f"tracking_uri is '{server}', which does not answer ({first_line(error)}); without it "
            "nobody knows what runs and registered models need, so nothing was removed"
        ) from None


def _remove(spare: Spare, store: Store) -> str | None:
    """Remove one thing; returns why it stays, if it does."""
    if spare.kind == "training":
        return _remove_training(spare, store)
    if spare.kind == "dataset":
        return _remove_dataset(spare, store)
    if spare.kind == "preparation" and not store.is_old(storage.usage(spare.uri)):
        return "a job is at work there now"
    if spare.first:
        storage.remove(spare.first)
    storage.remove(spare.uri)
    return None


def _remove_training(spare: Spare, store: Store) -> str | None:
    """Under its lease: a job that wants the same training waits, and then begins it anew."""
    try:
        owner = lease.new_owner()
        claim = lease.acquire(spare.lease, owner, lease_s=LEASE_S, now=time.time())
    except lease.LeaseBusyError as busy:
        return f"{busy.owner} is training it"
    with lease.hold(claim, lease_s=LEASE_S):
        if commits.is_committed(spare.uri):
            return "it has finished meanwhile"
        for name in storage.children(spare.uri):
            if name != spare.lease.rpartition("/")[2]:
                storage.remove(storage.join(spare.uri, name))
    if not lease.holder(spare.lease, now=time.time()):
        storage.remove(spare.uri)
    return None


def _remove_dataset(
    spare: Spare, store: Store, sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """The manifest first; it is put back if a training begins, which may have read it before."""
    if owner := _training(store):
        return f"{owner} is training, perhaps on it"
    manifest = storage.read_bytes(spare.first)
    storage.remove(spare.first)
    sleep(BEGINNING_S)
    if owner := _training(store):
        storage.publish(spare.first, manifest)
        return f"{owner} began to train, perhaps on it"
    storage.remove(spare.uri)
    return None


def _training(store: Store) -> str | None:
    """Who holds a training of this store."""
    held = (lease.holder(storage.join(s, find.LEASE), now=time.time()) for s in store.trainings())
    return next(filter(None, held), None)

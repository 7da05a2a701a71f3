"""The job: plan, gather, judge the faults, write shards, commit.

Everything before the manifest lies under `<dataset>/_work/<key>-<base>` or under a name that no
manifest holds; the manifest is written last, once. A rerun finds what is finished by its records.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from pipelines import storage
from pipelines.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    find_manifest,
    is_dataset,
    replace_manifest,
    write_manifest,
)
from pipelines.errors import UserError
from pipelines.prepare import card, dry_run, existing, passes, plan, sidecars
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.passes import Job
from pipelines.prepare.plan import Listing
from pipelines.prepare.progress import console, listing_progress
from pipelines.prepare.sources import listing
from pipelines.prepare.sources.labels import Labels, read_labels
from pipelines.prepare.sources.layout import Rules, quoted
from pipelines.prepare.sources.names import Found
from pipelines.prepare.unread import not_read
from pipelines.runtime import cluster, environment
from pipelines.runtime.shared_folder import require_shared


def prepare_dataset(config: PrepareConfig) -> str:
    """Prepare a dataset, add to one, or find it prepared; returns its URI."""
    sources = tuple(map(storage.absolute, config.sources))
    if len(sources) == 1 and is_dataset(sources[0]):
        return sidecars.add_masks(config, sources[0])
    flag = "store" if config.output is None else "output"
    environment.require_lasting(flag, config.output or config.store)
    home = storage.absolute(config.output or storage.join(config.store, "prepare"))
    if not config.dry_run:
        _require_apart(sources, home)
    learned = Found.empty()
    labels = (
        read_labels(config.labels, config.class_list, config.label_base, learned.notes)
        if config.labels
        else None
    )
    with _listing(config, sources, learned) as found:
        if config.dry_run:
            dry_run.show(config, found, labels)
            return ""
        key = job_key(config, found, labels)
        uri = home if config.output else storage.join(home, key[:16])
        old = _old_manifest(uri)
        if old is not None and old.is_done(key):
            card.complete(uri, old)
            plan.clear_work(uri, key)
            console.print(f"already prepared: {uri}")
            return uri
        work = plan.work_uri(uri, key, old, " ".join(sources))
        held = existing.write(config, uri, work, old)
        planned = plan.make(found, work, dict(learned.folders))
    with cluster.connect():
        require_shared(flag, home)
        try:
            manifest = passes.run_passes(
                Job(
                    config,
                    uri,
                    work,
                    key,
                    planned,
                    labels,
                    old,
                    held,
                    learned.others,
                    found.secrets,
                )
            )
        except (UserError, FileNotFoundError):
            if _is_done(uri, key):  # and the other job has cleared up behind us
                return _second(uri, key)
            raise
    if not commit(uri, manifest, old):
        return _second(uri, key)
    facts = card.write(uri, manifest)
    plan.clear_work(uri, key)
    card.show(uri, manifest, facts)
    card.track(config, uri, manifest)
    return uri


def _old_manifest(uri: str) -> Manifest | None:
    """The dataset that is added to; None for a new one."""
    old = find_manifest(uri)
    if old is None and storage.exists(storage.join(uri, MANIFEST)):
        raise UserError(
            f"output is '{uri}', where a {MANIFEST} lies that is no dataset's; give an "
            "--output elsewhere"
        )
    return old


def _require_apart(sources: tuple[str, ...], uri: str) -> None:
    """The next listing of the source would take the shards for images."""
    for source in sources:
        if storage.is_within(uri, source):
            raise UserError(
                f"--output is '{uri}', which lies in the source '{source}'; give an --output (or "
                "a --store) elsewhere"
            )


def commit(uri: str, manifest: Manifest, old: Manifest | None) -> bool:
    """Commit the result; False when the same result is there already.

    Raises:
        UserError: another job committed something else there first.
    """
    try:
        if old is None:
            write_manifest(uri, manifest)
        else:
            replace_manifest(uri, manifest)
    except FileExistsError:
        if _is_done(uri, manifest.jobs[-1]):
            return False
        raise UserError(
            f"output is '{uri}'; another job with other images or settings committed there "
            "first, and this one changed nothing. Rerun the same command to add to it"
        ) from None
    return True


def _is_done(uri: str, key: str) -> bool:
    found = find_manifest(uri)
    return found is not None and found.is_done(key)


def _second(uri: str, key: str) -> str:
    plan.clear_work(uri, key)
    console.print(f"another job committed the same dataset first: {uri}")
    return uri


@contextmanager
def _listing(config: PrepareConfig, sources: tuple[str, ...], learned: Found) -> Iterator[Listing]:
    """The pieces of the source; refuses one without images."""
    pieces = listing.pieces(sources, None, config.rules, learned)
    with plan.listing(listing_progress(pieces)) as found:
        kinds = not_read(learned.others)
        if found.pieces == 0:
            raise UserError(
                f"--source is '{config.shown_source}'; there is no image to train on in it. There: "
                f"{kinds or 'nothing'}; images are JPEG, PNG, WebP or AVIF files, "
                "alone, in .tar, .zip or .parquet"
            )
        if kinds:
            console.print(f"not read: {kinds}", soft_wrap=True)
        for note in learned.notes:
            console.print(f"note: {note}", soft_wrap=True)
        is_files = found.files == found.pieces  # of archives the classes are not known yet
        if learned.tables and is_files and not found.has_classes and config.labels is None:
            console.print(
                f"note: no image has a class, and {quoted(learned.tables)} beside them is not "
                "read: give it as --labels where it holds their classes, as --source where it "
                "lists the images",
                soft_wrap=True,
            )
        yield found


def job_key(config: PrepareConfig, found: Listing, labels: Labels | None) -> str:
    """Key of the job: everything that the shards follow from, and no path or machine."""
    return storage.content_key(
        {
            "stage": "prepare",
            "format": FORMAT_VERSION,
            "listing": found.digest,
            "labels": labels.in_key() if labels else None,
            "masks": [asdict(spec) for spec in config.masks],
            "limits": config.limits._asdict(),
            "validation_share": config.validation_share,
            "seed": config.seed,
            "rows_per_shard": config.rows_per_shard,
            "row_group_rows": config.row_group_rows,
            **({"rules": config.rules} if config.rules != Rules() else {}),
            # Once a place came before the list; where only one of them speaks, all is as then.
            **({"labels_first": True} if labels and found.has_classes else {}),
        }
    )

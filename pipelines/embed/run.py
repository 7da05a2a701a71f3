"""The job: list, embed what is missing, commit; then the neighbours of the queries, if any."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool

from pipelines import storage
from pipelines.embed import features, neighbours, sources, worker
from pipelines.embed.config import EmbedConfig
from pipelines.embed.features import Embeddings
from pipelines.embed.sources import Listed
from pipelines.embed.worker import Embedder, Task
from pipelines.errors import UserError, counted
from pipelines.models import embed, files
from pipelines.models.files import LoadedModel
from pipelines.models.resolve import ModelRef, resolve_model
from pipelines.prepare import doubts
from pipelines.prepare.sources.layout import Rules
from pipelines.prepare.tasks import consume
from pipelines.prepare.unread import not_read
from pipelines.runtime import cluster
from pipelines.runtime.progress import plain_console
from pipelines.tracking import client

KEY_VERSION = 1  # part of every key: raise it when the same settings give other features
MAX_THREADS = 8
MAX_LOSSES = 3  # of processes, before embedding gives up
JOB = "job.json"


def embed_images(config: EmbedConfig) -> str:
    """Embed what is missing, or find it done; returns the URI of the features.

    Raises:
        UserError: what the user can fix, in one message.
    """
    console = plain_console(soft_wrap=True)
    tracking_uri = client.tracking_uri(config.tracking_uri, config.store)
    ref = resolve_model(config.model, store=config.store, tracking_uri=tracking_uri)
    model = files.load_model(ref.uri)
    layer = embed.require_layer(model, config.layer)
    queries = neighbours.open_queries(config, model)  # refused before any work
    with sources.find(config) as found:
        if found.others:
            console.print(f"not read: {not_read(found.others)}")
        for note in found.notes:
            console.print(f"note: {note}")
        key = _key(config, ref, layer, found)
        home = config.output or storage.join(config.store, "embed", key[:16])
        uri = storage.absolute(home)
        _claim(config, uri, key)
        done = features.find_embeddings(uri)
        if done is None:
            done = _embed(config, ref, model, layer, found, uri, key)
            console.print(_summary(done, uri))
        else:
            console.print(f"already embedded: {uri}")
        if queries:
            neighbours.show(config, uri, done, model, layer, queries, found)
    return uri


def _key(config: EmbedConfig, ref: ModelRef, layer: str, found: Listed) -> str:
    """Names the result: the images, the weights and what is taken of them; no path or machine."""
    return storage.content_key(
        {
            "stage": "embed",
            "version": KEY_VERSION,
            "images": found.identity,
            "model": ref.identity,
            "layer": layer,
            "pool": config.pool,
            "normalize": config.normalize,
            "dtype": config.dtype,
            "max_pixels": config.max_pixels,
            **({"labels": asdict(found.labels)} if found.labels else {}),
            **({"rules": config.rules} if config.rules != Rules() else {}),
        }
    )


def _claim(config: EmbedConfig, uri: str, key: str) -> None:
    """The output folder belongs to one job.

    Raises:
        UserError: it lies in the source, or holds the features of another job.
    """
    for source in config.sources:
        if storage.is_within(uri, storage.absolute(source)):
            raise UserError(
                f"--output is '{uri}', which lies in the source '{source}'; give an --output (or a "
                "--store) elsewhere"
            )
    place = storage.join(uri, JOB)
    try:
        storage.publish_json(place, {"key": key}, exclusive=True)
    except FileExistsError:
        if storage.read_json(place).get("key") != key:
            raise UserError(
                f"output is '{uri}', which holds the features of another job (other images, model "
                "or settings); give another --output, or none"
            ) from None


def _embed(
    config: EmbedConfig,
    ref: ModelRef,
    model: LoadedModel,
    layer: str,
    found: Listed,
    uri: str,
    key: str,
) -> Embeddings:
    """Embed the units without a record, judge the faults, commit."""
    work = storage.join(uri, "_work")
    count = _store_units(found, work)
    todo = sorted(set(range(count)) - worker.finished_units(work))
    width = embed.width(model, layer, config.pool)
    task = Task(
        model_uri=ref.uri,
        output=uri,
        work=work,
        layer=layer,
        pool=config.pool,
        normalize=config.normalize,
        dtype=config.dtype,
        width=width,
        batch_size=config.batch_size,
        max_pixels=config.max_pixels,
        threads=1,
        labels=found.labels,
        secrets=found.secrets,
    )
    if todo:
        with cluster.connect() as resources:
            _run(config, task, todo, resources)
    records = [storage.read_json(worker.record_uri(work, unit)) for unit in range(count)]
    _check_sources(config, found, records)
    faults = [fault for record in records for fault in record["faults"]]
    entries = tuple(record["file"] for record in records if record["file"]["rows"])
    rows = sum(entry["rows"] for entry in entries)
    _check_faults(config, faults, rows, uri)
    settings = {
        "model": ref.name,
        "weights_sha256": ref.sha256,
        "run_id": ref.run_id,
        "preset": ref.network.preset,
        "layer": layer,
        "pool": config.pool,
        "normalize": config.normalize,
        "dtype": config.dtype,
        "source": config.shown_source,
    }
    kinds = Counter(fault["fault"].partition(":")[0] for fault in faults)
    done = Embeddings(
        key=key, width=width, rows=rows, faults=dict(kinds), files=entries, settings=settings
    )
    try:
        features.publish_manifest(uri, done)
    except FileExistsError:
        plain_console().print(f"another job committed the same features first: {uri}")
    committed = features.find_embeddings(uri)
    assert committed is not None
    named = {entry["path"] for entry in committed.files}
    for name in storage.children(uri):  # of attempts that were killed, and of another job
        if name.startswith(features.PART) and name not in named:
            storage.remove(storage.join(uri, name))
    storage.remove(work)
    return committed


def _store_units(found: Listed, work: str) -> int:
    """Describe every unit where its actor reads it; returns how many there are."""
    planned = storage.join(work, "plan.json")
    if storage.exists(planned):
        return int(storage.read_json(planned)["units"])
    count = 0
    for unit in found.units():
        storage.publish_json(worker.unit_uri(work, unit["unit"]), sources.hide(unit))
        count += 1
    storage.publish_json(planned, {"units": count})
    return count


def _run(config: EmbedConfig, task: Task, todo: list[int], resources: cluster.Resources) -> None:
    """Embed the units on the cluster; where a process is lost, go on with what is left of them.

    Raises:
        UserError: the first unit that failed did so for a reason outside the program, or processes
            were lost again and again.
    """
    for _ in range(1 + MAX_LOSSES):
        try:
            consume(_results(config, task, todo, resources), "embedding", len(todo))
        except RayActorError:
            todo = sorted(set(todo) - worker.finished_units(task.work))
            if not todo:
                return
            text = f"a process that embeds was lost; {counted(len(todo), 'part')} left to embed"
            plain_console(soft_wrap=True).print(text)
        else:
            return
    raise UserError(
        f"embedding lost a process {1 + MAX_LOSSES} times; often the memory is full: use fewer "
        f"--actors or a smaller --batch-size than {config.batch_size}. Nothing is committed; what "
        "is finished is kept; rerun the same command to resume there"
    )


def _results(
    config: EmbedConfig, task: Task, todo: list[int], resources: cluster.Resources
) -> Iterator[dict[str, int]]:
    """What each unit gives, as it is done."""
    gpus = resources.gpus
    each = 1 if gpus else min(2, max(1, resources.cpus))  # CPUs of an actor
    actors = config.actors or gpus or max(1, resources.cpus // each)
    threads = min(MAX_THREADS, max(1, resources.cpus // (gpus or actors)))
    start = ray.remote(num_cpus=each, num_gpus=1 if gpus else 0)(Embedder)
    held = [start.remote(task._replace(threads=threads)) for _ in range(min(actors, len(todo)))]
    yield from ActorPool(held).map_unordered(lambda actor, unit: actor.embed.remote(unit), todo)


def _check_sources(config: EmbedConfig, found: Listed, records: list[dict[str, Any]]) -> None:
    """Say what was not read in archives; refuse labels that only the whole source shows wrong.

    Raises:
        UserError: a label list names two images by one name, or archives contradict the folders.
    """

    def total(name: str) -> Counter[str]:  # records of before had none of these
        return sum((Counter(record.get(name, {})) for record in records), Counter[str]())

    if others := total("not_read"):
        text = f"not read, in archives and tables: {not_read(others)}"
        plain_console(soft_wrap=True).print(text)
    doubts.check_names(config, total("bare_names"))
    doubts.check_folders(config, found.folders, total("folders"))


def _check_faults(config: EmbedConfig, faults: list[dict[str, str]], rows: int, uri: str) -> None:
    """Write the list of faults.

    Raises:
        UserError: there are too many, or nothing is left.
    """
    if faults:
        worker.publish_faults(storage.join(uri, features.FAULTS), faults)
    listed = rows + len(faults)
    shown = "; ".join(f"{fault['key']}: {fault['fault']}" for fault in faults[:5])
    too_many = len(faults) > max(config.max_bad_images, config.max_bad_share * listed)
    if too_many or not rows:
        raise UserError(
            f"{len(faults)} of {listed} images cannot be embedded; allowed are max_bad_images "
            f"{config.max_bad_images} or max_bad_share {config.max_bad_share:.1%}, and one at "
            f"least has to be left. {shown}. All are listed in "
            f"{storage.join(uri, features.FAULTS)}; what is embedded is kept"
        )


def _summary(done: Embeddings, uri: str) -> str:
    """The result in one line."""
    left_out = sum(done.faults.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.faults.items()))
    faults = f"; {left_out} left out ({kinds})" if left_out else ""
    return (
        f"embedded {done.rows:,} images as {done.settings['dtype']} x {done.width}{faults}: {uri}"
    )

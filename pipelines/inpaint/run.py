"""Stage: fill the holes of images with a trained model; outside the hole nothing changes.

Every image is filled at its own resolution, hole by hole (`models/fill.py`); pixels outside the
mask are returned bit by bit. Output is PNG, which loses nothing, in 8-bit RGB, upright, without
transparency, colour profile or metadata. An image's name is kept with the suffix .png.

    OUTPUT/job.json       what is being filled with what; another job is refused here, and so are
                          images or masks that changed (in bytes) after they were used
    OUTPUT/NAME.png       one per image
    OUTPUT/index.html     image, hole and filling of the first ones, and what could not be filled
    OUTPUT/commit.json    counts, faults and what was assumed of masks, written last

A few images are filled here; for many, or where a cluster is named, Ray Data holds the model in
actors. Whatever can be refused is refused before that.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines import storage
from pipelines.errors import UserError
from pipelines.inpaint.config import InpaintConfig
from pipelines.inpaint.fill import Filler
from pipelines.inpaint.gallery import write_gallery
from pipelines.inpaint.read import HoleSource
from pipelines.inpaint.sources import Source, describe, find_sources, output_name
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.runtime.progress import ProgressDisplay, plain_console
from pipelines.storage import commits

KEY_VERSION = 3  # 3: each hole in a crop of its own instead of the whole image squeezed
JOB = "job.json"
FEW_IMAGES = 32  # that are filled without Ray, whose start takes as long as filling them
Sizes = dict[str, list[int | None]]
"""Name of an image -> its bytes and those of its mask; None where it has no mask."""


def inpaint_images(config: InpaintConfig) -> dict[str, Any]:
    """Fill what is missing; returns the counts that `commit.json` holds."""
    console = plain_console(soft_wrap=True)
    output = storage.absolute(config.output)
    sources, others = find_sources(config)
    if others:
        console.print(describe(others))
    model_uri = model_folder(config)
    model = files.load_model(model_uri)
    names = list(sources)
    key = _key(config, names, model)
    todo = [name for name in names if not storage.exists(storage.join(output, output_name(name)))]
    sizes: Sizes = {name: [s.image_bytes, s.mask_bytes] for name, s in sources.items()}
    _claim(output, key, sizes, set(names) - set(todo))
    commit = commits.commit_uri(output)
    if storage.exists(commit):
        done: dict[str, Any] = storage.read_json(commit)
        if done["faults"].keys() >= set(todo):
            console.print(f"already filled: {output}")
            return done
        storage.remove(commit)
    if len(names) > len(todo):
        console.print(f"{len(names)} images, {len(names) - len(todo)} filled before")
    faults: dict[str, str] = {}
    notes: dict[str, str] = {}
    with ProgressDisplay(console, "filling", len(todo)) as display:
        for done_so_far, row in enumerate(_results(config, sources, todo, model, model_uri), 1):
            if row["fault"]:
                faults[row["name"]] = row["fault"]
            if row["note"]:
                notes[row["name"]] = row["note"]
            display.update(done_so_far, f"{len(faults)} not filled" if faults else "")
    for note, count in Counter(notes.values()).items():
        console.print(f"{count} of {len(names)} images: {note}")
    if len(faults) > config.max_bad_share * len(names):
        shown = "; ".join(f"{name}: {why}" for name, why in list(faults.items())[:5])
        raise UserError(
            f"{len(faults)} of {len(names)} images could not be filled; max_bad_share allows "
            f"{config.max_bad_share:.1%}. {shown}"
        )
    counts = {
        "key": key,
        "listed": len(names),
        "filled": len(names) - len(faults),
        "left_out": others,
        "faults": faults,
        "notes": notes,
    }
    page = write_gallery(
        output, sources, _holes(config), faults,
        overlap=model.objective.overlap, title=f"Model: {config.model}",
    )  # fmt: skip
    storage.publish_json(commit, counts)
    console.print(f"filled {counts['filled']} of {len(names)} images: {output}")
    console.print(f"look at them: {page}")
    return counts


def model_folder(config: InpaintConfig) -> str:
    """Where every node can read the model; a registered one is copied into the store."""
    folder = files.folder_of(config.model)
    if storage.is_local(config.model) and storage.exists(storage.join(folder, files.MODEL)):
        return folder  # without MLflow, whose import takes seconds
    from pipelines.models.resolve import resolve_model
    from pipelines.tracking import client

    uri = client.tracking_uri(config.tracking_uri, config.store)
    return resolve_model(config.model, store=config.store, tracking_uri=uri).uri


def _holes(config: InpaintConfig) -> HoleSource:
    return HoleSource(config.strategy, config.seed, config.mask_polarity)


def _key(config: InpaintConfig, names: list[str], model: LoadedModel) -> str:
    polarity = config.mask_polarity
    return storage.content_key(
        {
            "stage": "inpaint",
            "version": KEY_VERSION,
            "model": model.info["weights_sha256"],
            "names": names,
            # Of two folders with the same names and sizes in them only the place tells them apart.
            "images": storage.absolute(config.images.rstrip("/")),
            "masks": config.masks and storage.absolute(config.masks.rstrip("/")),
            "strategy": config.strategy,
            "seed": config.seed,
            **({} if polarity == "auto" else {"mask_polarity": polarity}),
        }
    )


def _claim(output: str, key: str, sources: Sizes, filled: set[str]) -> None:
    """The output folder belongs to one job.

    Raises:
        UserError: it holds what another job, or this one with other images or masks, made.
    """
    uri, commit = storage.join(output, JOB), commits.commit_uri(output)
    held = (
        [output_name(min(filled))] if filled else [commits.COMMIT] if storage.exists(commit) else []
    )
    if held and not storage.exists(uri):
        raise UserError(
            f"output is '{output}', which holds {held[0]} already, and not from a job of this "
            "kind; choose another folder"
        )
    job = {"key": key, "sources": sources}
    try:
        storage.publish_json(uri, job, exclusive=True)
        return
    except FileExistsError:
        pass
    try:
        before = storage.read_json(uri)
    except ValueError:
        before = None
    if not isinstance(before, dict) or before.get("key") != key:
        raise UserError(
            f"output is '{output}', which holds the images of another job (other images, "
            "masks or model); choose another folder"
        )
    changed = [name for name in sources if sources[name] != before["sources"][name]]
    stale = sorted(filled.intersection(changed))
    if stale:
        raise UserError(
            f"output is '{output}', which holds {output_name(stale[0])} made from another image or "
            f"mask than the one that has the name {stale[0]} now ({len(stale)} such); choose "
            "another folder, or remove what is to be filled again"
        )
    if changed:  # what could not be filled may be filled now
        storage.remove(commit)
        storage.publish_json(uri, job)


def _results(
    config: InpaintConfig,
    sources: dict[str, Source],
    todo: list[str],
    model: LoadedModel,
    model_uri: str,
) -> Iterator[dict[str, str]]:
    """Name, fault and note of each image once it is done with."""
    output = storage.absolute(config.output)
    if len(todo) <= FEW_IMAGES and not config.actors and not os.environ.get("RAY_ADDRESS"):
        filler = Filler(model, _holes(config), output)
        for first in range(0, len(todo), config.batch_size):
            names = todo[first : first + config.batch_size]
            yield from filler.fill((name, sources[name]) for name in names)
        return
    yield from _results_of_ray(config, sources, todo, model_uri)


def _results_of_ray(
    config: InpaintConfig, sources: dict[str, Source], todo: list[str], model_uri: str
) -> Iterator[dict[str, str]]:
    import ray  # a few images are filled without it, and its import takes a second

    from pipelines.inpaint.fill import FillerActor
    from pipelines.runtime import cluster
    from pipelines.runtime.reservation import reserve

    with cluster.connect() as resources:
        gpu = bool(resources.gpus)
        actors = config.actors or max(1, resources.gpus if gpu else resources.cpus // 2)
        blocks = max(1, -(-len(todo) // config.batch_size))
        items = [
            {"name": name, "image": sources[name].image, "mask": sources[name].mask or ""}
            for name in todo
        ]
        rows = ray.data.from_items(items, override_num_blocks=blocks)
        rows.context.raise_original_map_exception = True  # else a full disk is no OSError
        wanted = min(actors, blocks)
        tell = plain_console(soft_wrap=True).print
        # They hold what they have to the end: a training's data must find a CPU beside them.
        with reserve(cpus=0 if gpu else wanted, gpus=wanted if gpu else 0, tell=tell) as (cpus, _):
            results = rows.map_batches(
                FillerActor,
                fn_constructor_args=(model_uri, _holes(config), storage.absolute(config.output)),
                batch_size=config.batch_size,
                concurrency=wanted if gpu else cpus,
                num_gpus=1 if gpu else 0,
                num_cpus=0 if gpu else 1,
            )
            yield from results.iter_rows()

"""Stage: fill the holes of many images with a trained model; outside the hole nothing changes.

Every image is scaled to the square that the network sees, filled, scaled back, and only the
pixels under the mask are taken from the result: all others are returned bit by bit. Output is PNG,
which loses nothing, in 8-bit RGB, upright, without transparency, colour profile or metadata. A
image's name is kept with the suffix .png.

    OUTPUT/job.json       what is being filled with what; another job is refused here, and so are
                          images or masks that changed (in bytes) after they were used
    OUTPUT/NAME.png       one per image
    OUTPUT/commit.json    counts and faults, written last
"""

import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import ray

from pipelines import storage
from pipelines.errors import UserError
from pipelines.inpaint.config import InpaintConfig
from pipelines.inpaint.fill import Filler
from pipelines.inpaint.read import HoleSource, output_uri
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.runtime import cluster
from pipelines.runtime.progress import plain_console
from pipelines.storage import commits
from pipelines.tracking import client, models

KEY_VERSION = 2


SUFFIXES = {".jpg", ".jpeg", ".png"}


JOB = "job.json"


Sources = dict[str, list[int | None]]


"""Name of an image -> its bytes and those of its mask; None where it has no mask."""


def inpaint_images(config: InpaintConfig) -> dict[str, Any]:
    """Fill what is missing; returns the counts that `commit.json` holds."""
    console = plain_console(soft_wrap=True)
    output = storage.absolute(config.output)
    model_uri = model_folder(config)
    sources = find_sources(config)
    names = list(sources)
    key = _key(config, names, files.load_model(model_uri))
    todo = [name for name in names if not storage.exists(storage.join(output, output_uri(name)))]
    _claim(output, key, sources, set(names) - set(todo))
    commit = commits.commit_uri(output)
    if storage.exists(commit):
        done: dict[str, Any] = storage.read_json(commit)
        if done["faults"].keys() >= set(todo):
            console.print(f"already filled: {output}")
            return done
        storage.remove(commit)
    console.print(f"{len(names)} images, {len(names) - len(todo)} filled before")
    with cluster.connect() as resources:
        faults = _fill_all(config, todo, model_uri, output, resources)
    counts = {
        "key": key,
        "listed": len(names),
        "filled": len(names) - len(faults),
        "faults": faults,
    }
    if len(faults) > config.max_bad_share * len(names):
        shown = "; ".join(f"{name}: {why}" for name, why in list(faults.items())[:5])
        raise UserError(
            f"{len(faults)} of {len(names)} images could not be filled; max_bad_share allows "
            f"{config.max_bad_share:.1%}. {shown}"
        )
    storage.publish_json(commit, counts)
    console.print(f"filled {counts['filled']} of {len(names)} images: {output}")
    return counts


def model_folder(config: InpaintConfig) -> str:
    """Where every node can read the model; a registered one is copied into the store."""
    if not config.model.startswith("models:/"):
        return files.folder_of(config.model)
    uri = client.tracking_uri(config.tracking_uri, config.store)
    with tempfile.TemporaryDirectory() as temporary:
        models.download_model(uri, config.model, Path(temporary))
        digest = files.load_model(temporary).info["weights_sha256"]
        kept = storage.join(storage.absolute(config.store), "inpaint", "models", digest[:16])
        files.copy_model(temporary, kept)
    return kept


def find_sources(config: InpaintConfig) -> Sources:
    """All images under the folder, in order, by their names relative to it.

    Raises:
        UserError: no such folders, no images, or the output would lie among them.
    """
    for name, folder in (("images", config.images), ("masks", config.masks)):
        if folder is not None:
            storage.require_folder(folder, name)
            if storage.is_within(config.output, folder):
                raise UserError(
                    f"output is '{config.output}', which lies in {name} '{folder}'; the filled "
                    "images need a folder outside it"
                )
    masks = {} if config.masks is None else dict(storage.walk(config.masks))
    sources: Sources = {
        name: [size, masks.get(name, masks.get(output_uri(name)))]
        for name, size in storage.walk(config.images)
        if PurePosixPath(name).suffix.lower() in SUFFIXES
    }
    if not sources:
        raise UserError(f"images is '{config.images}'; there is no .jpg or .png image in it")
    for name in sources:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"images is '{config.images}'; the name {name!a} in it is not UTF-8; rename it"
            )
    return sources


def _key(config: InpaintConfig, names: list[str], model: LoadedModel) -> str:
    twins = len(names) - len({output_uri(name) for name in names})
    if twins:
        raise UserError(
            f"images is '{config.images}'; {twins} images differ from others only in their "
            "suffix and would overwrite them"
        )
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
        }
    )


def _claim(output: str, key: str, sources: Sources, filled: set[str]) -> None:
    """The output folder belongs to one job.

    Raises:
        UserError: it holds what another job, or this one with other images or masks, made.
    """
    uri, commit = storage.join(output, JOB), commits.commit_uri(output)
    held = (
        [output_uri(min(filled))] if filled else [commits.COMMIT] if storage.exists(commit) else []
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
            f"output is '{output}', which holds {output_uri(stale[0])} made from another image or "
            f"mask than the one that has the name {stale[0]} now ({len(stale)} such); choose "
            "another folder, or remove what is to be filled again"
        )
    if changed:  # what could not be filled may be filled now
        storage.remove(commit)
        storage.publish_json(uri, job)


def _fill_all(
    config: InpaintConfig,
    todo: list[str],
    model_uri: str,
    output: str,
    resources: cluster.Resources,
) -> dict[str, str]:
    """Faults by name."""
    if not todo:
        return {}
    gpu = bool(resources.gpus)
    actors = config.actors or max(1, resources.gpus if gpu else resources.cpus // 2)
    blocks = max(1, -(-len(todo) // config.batch_size))
    rows = ray.data.from_items([{"name": name} for name in todo], override_num_blocks=blocks)
    rows.context.raise_original_map_exception = True  # else a full disk is no OSError
    masks = None if config.masks is None else storage.absolute(config.masks)
    holes = HoleSource(masks, config.strategy, config.seed)
    results = rows.map_batches(
        Filler,
        fn_constructor_args=(model_uri, storage.absolute(config.images), holes, output),
        batch_size=config.batch_size,
        concurrency=min(actors, blocks),
        num_gpus=1 if gpu else 0,
        num_cpus=0 if gpu else 1,
    )
    return {row["name"]: row["fault"] for row in results.iter_rows() if row["fault"]}

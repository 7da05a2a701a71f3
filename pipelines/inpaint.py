"""Stage: fill the holes of many pictures with a trained model; outside the hole nothing changes.

Every picture is scaled to the square that the network sees, filled, scaled back, and only the
pixels under the mask are taken from the result: all others are returned bit by bit. Output is PNG,
which loses nothing, in 8-bit RGB, upright, without transparency, colour profile or metadata. A
picture's name is kept with the suffix .png.

    OUTPUT/job.json       what is being filled with what; another job is refused here, and so are
                          pictures or masks that changed (in bytes) after they were used
    OUTPUT/NAME.png       one per picture
    OUTPUT/commit.json    counts and faults, written last
"""

import io
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ce_model import training
from ce_model.mask_tensors import shrink
from ce_model.masks import Strategy, mask_for
from ce_model.networks import output_side
from pipelines import cluster, images, storage, tracking, weights
from pipelines.errors import UserError
from pipelines.progress import plain_console
from pipelines.weights import LoadedModel

KEY_VERSION = 2
SUFFIXES = {".jpg", ".jpeg", ".png"}
COMMIT, JOB = "commit.json", "job.json"
MAX_PIXELS = 50_000_000
# Black beside a white shape comes out of a JPEG as grey: up to 39 at quality 75, 125 at 30.
JPEG_NOISE = 127

Pixels = NDArray[np.uint8]
Hole = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """Fill the holes of a folder of pictures."""

    model: str
    """Model folder, pretraining stage, or registered model: models:/NAME@champion."""
    images: str
    """Folder of JPEG or PNG pictures, searched in full."""
    output: str
    """Folder for the filled pictures."""
    masks: str | None = None
    """Folder of masks, named as the pictures and of their size; what is not black is filled,
    in a JPEG, where black is not exact, what is lighter than half."""
    strategy: Strategy | None = None
    """Instead of masks: draw holes of this family."""
    seed: int = 0
    """Of drawn holes."""
    batch_size: int = 16
    """Pictures filled at once."""
    actors: int = 0
    """Processes that hold the model; 0: one per GPU, or one per two CPUs."""
    max_bad_share: float = 0.01
    """Share of pictures that may be left out for a fault before the job fails."""
    store: str = "store"
    """Where SQLite tracking lies when no server is named."""
    tracking_uri: str | None = None
    """MLflow server of a registered model; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """One source of holes."""
        if (self.masks is None) == (self.strategy is None):
            raise ValueError(
                f"masks is {self.masks} and strategy is {self.strategy}; give exactly one of them"
            )
        for name, least in (("batch_size", 1), ("actors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it must be 0 to 1")


Sources = dict[str, list[int | None]]
"""Name of a picture -> its bytes and those of its mask; None where it has no mask."""


class Holes(NamedTuple):
    """Where the hole of a picture comes from."""

    masks_uri: str | None
    strategy: Strategy | None
    seed: int


class BadPicture(ValueError):
    """This picture cannot be filled; the others can."""


def run(config: InpaintConfig) -> dict[str, Any]:
    """Fill what is missing; returns the counts that `commit.json` holds."""
    console = plain_console(soft_wrap=True)
    output = storage.absolute(config.output)
    model_uri = model_folder(config)
    sources = find_sources(config)
    names = list(sources)
    key = _key(config, names, weights.load_model(model_uri))
    todo = [name for name in names if not storage.exists(storage.join(output, target(name)))]
    _claim(output, key, sources, set(names) - set(todo))
    commit = storage.join(output, COMMIT)
    if storage.exists(commit):
        done: dict[str, Any] = storage.read_json(commit)
        if done["faults"].keys() >= set(todo):
            console.print(f"already filled: {output}")
            return done
        storage.remove(commit)
    console.print(f"{len(names)} pictures, {len(names) - len(todo)} filled before")
    with cluster.connected() as resources:
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
            f"{len(faults)} of {len(names)} pictures could not be filled; max_bad_share allows "
            f"{config.max_bad_share:.1%}. {shown}"
        )
    storage.publish_json(commit, counts)
    console.print(f"filled {counts['filled']} of {len(names)} pictures: {output}")
    return counts


def model_folder(config: InpaintConfig) -> str:
    """Where every node can read the model; a registered one is copied into the store."""
    if not config.model.startswith("models:/"):
        return weights.folder_of(config.model)
    uri = tracking.tracking_uri(config.tracking_uri, config.store)
    with tempfile.TemporaryDirectory() as temporary:
        tracking.download_model(uri, config.model, Path(temporary))
        digest = weights.load_model(temporary).info["weights_sha256"]
        kept = storage.join(storage.absolute(config.store), "inpaint", "models", digest[:16])
        weights.copy_model(temporary, kept)
    return kept


def find_sources(config: InpaintConfig) -> Sources:
    """All pictures under the folder, in order, by their names relative to it.

    Raises:
        UserError: no such folders, no pictures, or the output would lie among them.
    """
    for name, folder in (("images", config.images), ("masks", config.masks)):
        if folder is not None:
            storage.require_folder(folder, name)
            if storage.is_within(config.output, folder):
                raise UserError(
                    f"output is '{config.output}', which lies in {name} '{folder}'; the filled "
                    "pictures need a folder outside it"
                )
    masks = {} if config.masks is None else dict(storage.walk(config.masks))
    sources: Sources = {
        name: [size, masks.get(name, masks.get(target(name)))]
        for name, size in storage.walk(config.images)
        if PurePosixPath(name).suffix.lower() in SUFFIXES
    }
    if not sources:
        raise UserError(f"images is '{config.images}'; there is no .jpg or .png picture in it")
    for name in sources:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"images is '{config.images}'; the name {name!a} in it is not UTF-8; rename it"
            )
    return sources


def target(name: str) -> str:
    """Name of a filled picture."""
    return str(PurePosixPath(name).with_suffix(".png"))


def _key(config: InpaintConfig, names: list[str], model: LoadedModel) -> str:
    twins = len(names) - len({target(name) for name in names})
    if twins:
        raise UserError(
            f"images is '{config.images}'; {twins} pictures differ from others only in their "
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
        UserError: it holds what another job, or this one with other pictures or masks, made.
    """
    uri, commit = storage.join(output, JOB), storage.join(output, COMMIT)
    held = [target(min(filled))] if filled else [COMMIT] if storage.exists(commit) else []
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
            f"output is '{output}', which holds the pictures of another job (other images, "
            "masks or model); choose another folder"
        )
    changed = [name for name in sources if sources[name] != before["sources"][name]]
    stale = sorted(filled.intersection(changed))
    if stale:
        raise UserError(
            f"output is '{output}', which holds {target(stale[0])} made from another picture or "
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
    holes = Holes(masks, config.strategy, config.seed)
    results = rows.map_batches(
        Filler,
        fn_constructor_args=(model_uri, storage.absolute(config.images), holes, output),
        batch_size=config.batch_size,
        concurrency=min(actors, blocks),
        num_gpus=1 if gpu else 0,
        num_cpus=0 if gpu else 1,
    )
    return {row["name"]: row["fault"] for row in results.iter_rows() if row["fault"]}


class Filler:
    """Ray Data actor: holds the model, reads, fills and writes a batch of pictures."""

    def __init__(self, model_uri: str, images_uri: str, holes: Holes, output: str) -> None:
        """Load the model, once per process."""
        self._model = weights.load_model(model_uri)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.generator.to(self._device)
        self._read = partial(read_picture, images_uri=images_uri, holes=holes, model=self._model)
        self._output = output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Name -> fault, empty for a picture that was filled and written."""
        faults: dict[str, str] = {}
        pictures: dict[str, Pixels] = {}
        hidden: dict[str, Hole] = {}
        for name in map(str, batch["name"]):
            try:
                pictures[name], hidden[name] = self._read(name)
            except (BadPicture, FileNotFoundError) as error:
                faults[name] = str(error) or "not there"
        filled = fill_pictures(
            self._model, list(pictures.values()), list(hidden.values()), self._device
        )
        for name, picture in zip(pictures, filled, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="png")
            storage.publish(storage.join(self._output, target(name)), buffer.getvalue())
        names = [str(name) for name in batch["name"]]
        return {"name": names, "fault": [faults.get(name, "") for name in names]}


def read_picture(
    name: str, *, images_uri: str, holes: Holes, model: LoadedModel
) -> tuple[Pixels, Hole]:
    """A picture, uint8 (H, W, 3) RGB, and its hole, bool (H, W).

    Raises:
        BadPicture: it cannot be read, or the hole does not fit it or the model.
    """
    picture = _rgb(_open(storage.join(images_uri, name)))
    height, width = picture.shape[:2]
    if holes.strategy is not None:
        drawn = mask_for(holes.seed, holes.strategy, model.side, name, 0)
        shown = shrink(torch.from_numpy(drawn)[None], model.objective.overlap)[0].numpy()
        hole = ~touched(~shown, height, width)  # no pixel that the network sees a part of
        if not hole.any():
            raise BadPicture(f"{width} x {height} px; too small for a drawn hole")
    else:
        assert holes.masks_uri is not None
        # A grey value of a colour may be rounded to black, one of 16 bits cut off.
        mask = _open(_mask_uri(holes.masks_uri, name))
        deep = mask.mode.startswith("I")
        pixels = np.asarray(mask)[..., None] if deep else np.asarray(mask.convert("RGB"))
        hole = pixels.max(axis=2) > (JPEG_NOISE if mask.format == "JPEG" else 0)
        if pixels.any() and not hole.any():
            raise BadPicture("the mask is a dark JPEG; white is filled, or save it as PNG")
    if hole.shape != (height, width):
        raise BadPicture(f"the mask has {hole.shape[::-1]} px, the picture {(width, height)}")
    if not (touched(hole, model.side, model.side) & ~fillable(model)).any():
        return picture, hole
    raise BadPicture(
        "the hole reaches outside the middle of the picture, which is all that this model fills"
    )


def _mask_uri(masks: str, name: str) -> str:
    """The mask of the same name, or the same name as PNG."""
    same = storage.join(masks, name)
    return same if storage.exists(same) else storage.join(masks, target(name))


def _open(uri: str) -> Image.Image:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise BadPicture(f"'{uri}' is not there") from None
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise BadPicture(f"{image.width} x {image.height} px; at most {MAX_PIXELS} pixels")
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # lost in a copy
        return upright
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture("neither a JPEG nor a PNG picture") from None
    except Exception as error:  # Pillow raises whatever its parsers meet in broken bytes
        raise BadPicture(f"{type(error).__name__}: {error}") from None


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        return images.from_16_bits(np.asarray(image))
    return np.asarray(image.convert("RGB"))


def fillable(model: LoadedModel) -> Hole:
    """bool (S, S): where a hole may be; a central prediction needs its ring of known context."""
    side, inner = model.side, output_side(model.network)
    first = (side - inner) // 2 + model.objective.overlap
    allowed = np.zeros((side, side), bool)
    allowed[first : side - first, first : side - first] = True
    return allowed


def touched(hole: Hole, height: int, width: int) -> Hole:
    """The mask at another size: True where any part of the pixel is True; exact at any scale."""
    sums = np.pad(hole.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = _spans(hole.shape[0], height), _spans(hole.shape[1], width)
    below, above = sums[bottom], sums[top]
    found: Hole = below[:, right] - above[:, right] - below[:, left] + above[:, left] > 0
    return found


def _spans(before: int, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every new pixel the first old one it overlaps, and one past the last."""
    pixel = np.arange(after)
    return pixel * before // after, -(-(pixel + 1) * before // after)


def fill_pictures(
    model: LoadedModel, pictures: list[Pixels], hidden: list[Hole], device: torch.device
) -> list[Pixels]:
    """Fill pictures of any sizes; every pixel outside its hole is returned unchanged.

    Args:
        model: what fills.
        pictures: uint8 (H, W, 3).
        hidden: bool (H, W), True where to fill.
        device: where the model is.
    """
    if not pictures:
        return []
    side = model.side
    # The network takes a hole with its ring of known context and shrinks it by that itself.
    ring = np.ones((2 * model.objective.overlap + 1,) * 2, np.uint8)
    holes = [cv2.dilate(touched(hole, side, side).astype(np.uint8), ring) > 0 for hole in hidden]
    squares = training.fill(
        model.generator,
        torch.from_numpy(np.stack([_resize(p, side, side) for p in pictures])).to(device),
        torch.from_numpy(np.stack(holes)).to(device),
        network=model.network,
        objective=model.objective,
        dtype=torch.float32,
    )
    return [
        np.where(hole[..., None], _resize(square, *picture.shape[:2]), picture)
        for picture, hole, square in zip(pictures, hidden, squares.cpu().numpy(), strict=True)
    ]


def _resize(picture: Pixels, height: int, width: int) -> Pixels:
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)

"""What a Python user imports: prepare images, pretrain on them, load a model and use it.

    from pipelines.api import load, prepare, pretrain

    dataset = prepare("photos", sides=(128,))
    model = pretrain(dataset, preset="inpaint", steps=2000)
    filled = model.fill(images, masks)      # arrays of any sizes; outside the masks bit by bit
    features = model.embed(images)          # float32 (N, D)
    model = load("models:/context-encoder@champion")

Settings are those of the jobs, by the same names (`python -m pipelines pretrain --help`). Whatever
the user can fix is a `UserError`. Importing this module imports neither torch nor Ray; a call
starts Ray for its time, unless `ray.init` was called before.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from pipelines.api_images import ImageLike, Mask, Pixels, Place, hole_of, pixels_of
from pipelines.api_settings import PrepareSettings, PretrainSettings, checked_settings
from pipelines.errors import UserError

if TYPE_CHECKING:
    from ce_model.choices import Pool
    from ce_model.network_config import Preset
    from pipelines.models.files import LoadedModel
    from pipelines.models.resolve import ModelRef

__all__ = ["Dataset", "Model", "UserError", "load", "prepare", "pretrain"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared dataset."""

    uri: str
    splits: dict[str, int]
    """Number of images by split."""
    classes: tuple[str, ...]
    """Class names by label; empty where the images have none."""
    fingerprint: str
    """Changes with any byte of the dataset."""

    def __str__(self) -> str:
        """Its URI, so that a dataset can stand wherever its folder can."""
        return self.uri


def prepare(
    source: Place | Sequence[Place],
    output: Place | None = None,
    *,
    store: Place = "store",
    **settings: Unpack[PrepareSettings],
) -> Dataset:
    """Turn images into a dataset; what is prepared already is found and not done again.

    Args:
        source: folder, archive, Parquet file, list of images, several of these, or a prepared
            dataset to add masks to; local or a URI.
        output: folder of the dataset; None: a folder in `store`, named after what is in it.
        store: folder or URI for all that is made.
        settings: as of `python -m pipelines prepare`.

    Raises:
        UserError: what the caller can fix, in one message.
    """
    from pipelines.prepare.config import PrepareConfig
    from pipelines.prepare.run import prepare_dataset

    places = (source,) if isinstance(source, str | os.PathLike) else source
    given = {**settings, "source": [*map(_text, places)], "output": output, "store": store}
    with _as_user_errors():
        return _dataset(prepare_dataset(checked_settings("prepare", PrepareConfig, given)))


def pretrain(
    source: "Place | Dataset | None" = None,
    *,
    preset: "Preset" = "inpaint",
    steps: int = 2000,
    store: Place = "store",
    **settings: Unpack[PretrainSettings],
) -> "Model":
    """Pretrain a context encoder; images that are not prepared yet are prepared first.

    The same arguments find the same training: a finished one is loaded, an interrupted one resumes.

    Args:
        source: images as for `prepare`, a dataset, or None for the sample images.
        preset: inpaint fills holes in 128 px images, alexnet learns features from 227 px images.
        steps: of training.
        store: folder or URI for datasets, checkpoints and models; with SQLite also the tracking.
        settings: as of `python -m pipelines pretrain`.

    Raises:
        UserError: what the caller can fix, in one message.
    """
    from pipelines.pretrain.config import PretrainConfig
    from pipelines.workflow.ensure_dataset import pretrain_on_source

    place = None if source is None else _text(source)
    given = {**settings, "source": place, "preset": preset, "steps": steps, "store": store}
    with _as_user_errors():
        config = checked_settings("pretrain", PretrainConfig, given)
        summary = pretrain_on_source(config)
        run_id = summary.get("tracking_run_id")
        return _open(summary["model"], run_id, device=None)


def load(
    reference: Place,
    *,
    store: Place = "store",
    tracking_uri: str | None = None,
    device: str | None = None,
) -> "Model":
    """A trained model by any name it goes by.

    Args:
        reference: model folder, pretraining stage, checkpoint, MLflow run id, or a registered
            model as `models:/NAME@champion` or `models:/NAME/3`.
        store: where registered models are kept; with SQLite also the tracking.
        tracking_uri: MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store.
        device: such as "cpu" or "cuda:1"; None: the first GPU, or the CPU where there is none.

    Raises:
        UserError: it names no model, or the device is not there.
    """
    from pipelines.models.resolve import resolve_model
    from pipelines.tracking import client

    with _as_user_errors():
        uri = client.tracking_uri(tracking_uri, _text(store))
        ref: ModelRef = resolve_model(_text(reference), store=_text(store), tracking_uri=uri)
        return _open(ref.uri, ref.run_id, device=device)


class Model:
    """A trained context encoder, on one device, ready to fill holes and to give features."""

    def __init__(self, loaded: "LoadedModel", uri: str, run_id: str | None) -> None:
        """Use `load` or `pretrain`, which know where the model comes from."""
        self._loaded = loaded
        self.uri = uri
        self.run_id = run_id
        """MLflow run that trained it; None where it is not known."""

    def __repr__(self) -> str:
        """What it is, what it reached and where it lies."""
        info = self._loaded.info
        from ce_model.network_config import about_training

        parts = [about_training(self._loaded.network, info.get("strategy", "unknown"))]
        if "steps" in info:
            parts.append(f"{info['steps']:,} steps")
        if "psnr_hole" in self.metrics:
            parts.append(f"PSNR in the hole {self.metrics['psnr_hole']:.2f} dB")
        if "accuracy" in self.metrics:
            parts.append(f"right answers {self.metrics['accuracy']:.1%}")
        return f"<Model {', '.join(parts)}: {self.uri}>"

    @property
    def preset(self) -> "Preset":
        """The network."""
        return self._loaded.network.preset

    @property
    def metrics(self) -> dict[str, float]:
        """What its training measured on the first validation images at the end, by name."""
        return dict(self._loaded.info.get("validation") or {})

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Layers of the encoder, first to last, with the shape of their features of one image."""
        from pipelines.models import embed

        return embed.layer_shapes(self._loaded)

    def fill(self, images: Sequence[ImageLike], masks: Sequence[Mask]) -> list[Pixels]:
        """Fill holes in images of any sizes; pixels outside of the masks are returned bit by bit.

        Args:
            images: uint8 (H, W, 3) RGB each, or images of Pillow, or their files.
            masks: (H, W) each, True or the brighter of two values where to fill; or files.

        Returns:
            uint8 (H, W, 3) each.

        Raises:
            UserError: an image or a mask that cannot be used; the message gives its number.
        """
        from pipelines.models.fill import fill_photographs

        with _as_user_errors():
            if len(images) != len(masks):
                raise UserError(
                    f"there are {len(images)} images and {len(masks)} masks; each image needs one"
                )
            opened = [pixels_of(image, f"images[{at}]") for at, image in enumerate(images)]
            hidden = [
                hole_of(mask, f"masks[{at}]", pixels.shape[:2])
                for at, (mask, pixels) in enumerate(zip(masks, opened, strict=True))
            ]
            return list(fill_photographs(self._loaded, opened, hidden))

    def embed(
        self,
        images: Sequence[ImageLike],
        *,
        layer: str | None = None,
        batch_size: int = 64,
        pool: "Pool" = "none",
        normalize: bool = False,
    ) -> NDArray[np.float32]:
        """Features of whole images: the shorter side resized, the centre square taken, no hole.

        Args:
            images: uint8 (H, W, 3) RGB each, or images of Pillow, or their files.
            layer: one of `layers`; None: the last.
            batch_size: images that pass through the network at once.
            pool: of a layer with a map, all its values, or the mean or the maximum per channel.
            normalize: to length 1, so that dot products are cosines.

        Returns:
            float32 (N, D).

        Raises:
            UserError: an unknown layer, or an image that cannot be used.
        """
        from pipelines.models import embed

        with _as_user_errors():
            if batch_size < 1:
                raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
            name = embed.require_layer(self._loaded, layer)
            parts = []
            for start in range(0, len(images), batch_size):
                numbers = range(start, min(start + batch_size, len(images)))
                opened = [pixels_of(images[at], f"images[{at}]") for at in numbers]
                batch = embed.squares(opened, self._loaded.side)
                parts.append(
                    embed.embed_squares(self._loaded, batch, name, pool, normalize=normalize)
                )
            if not parts:
                blank = np.zeros((0, self._loaded.side, self._loaded.side, 3), np.uint8)
                return embed.embed_squares(self._loaded, blank, name, pool, normalize=normalize)
            return np.concatenate(parts)


def _dataset(uri: str) -> Dataset:
    from pipelines.data.manifest import read_manifest

    manifest = read_manifest(uri)
    splits = {name: manifest.rows(name) for name in manifest.splits}
    return Dataset(
        uri=uri, splits=splits, classes=manifest.classes, fingerprint=manifest.fingerprint
    )


def _open(uri: str, run_id: str | None, *, device: str | None) -> Model:
    import torch

    from pipelines.models import files

    loaded = files.load_model(uri)
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        loaded.generator.to(wanted)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing device
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"device is '{wanted}', which cannot be used: {reason}") from None
    return Model(loaded, uri, run_id)


def _text(place: object) -> str:
    return os.fspath(place) if isinstance(place, str | os.PathLike) else str(place)


@contextmanager
def _as_user_errors() -> Iterator[None]:
    """A full disk or a server that is away is one message too."""
    try:
        yield
    except OSError as error:
        raise UserError(str(error)) from error

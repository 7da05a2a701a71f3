"""Fill the holes of images with a trained network."""

import io
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from ce_model import training
from pipelines import storage
from pipelines.inpaint.read import (
    Hole,
    HoleSource,
    Pixels,
    UnreadableImage,
    output_uri,
    read_image,
    touched_pixels,
)
from pipelines.models import files
from pipelines.models.files import LoadedModel


class Filler:
    """Ray Data actor: holds the model, reads, fills and writes a batch of images."""

    def __init__(self, model_uri: str, images_uri: str, holes: HoleSource, output: str) -> None:
        """Load the model, once per process."""
        self._model = files.load_model(model_uri)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.generator.to(self._device)
        self._read = partial(read_image, images_uri=images_uri, holes=holes, model=self._model)
        self._output = output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Name -> fault, empty for an image that was filled and written."""
        faults: dict[str, str] = {}
        pictures: dict[str, Pixels] = {}
        hidden: dict[str, Hole] = {}
        for name in map(str, batch["name"]):
            try:
                pictures[name], hidden[name] = self._read(name)
            except (UnreadableImage, FileNotFoundError) as error:
                faults[name] = str(error) or "not there"
        filled = fill_images(
            self._model, list(pictures.values()), list(hidden.values()), self._device
        )
        for name, picture in zip(pictures, filled, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="png")
            storage.publish(storage.join(self._output, output_uri(name)), buffer.getvalue())
        names = [str(name) for name in batch["name"]]
        return {"name": names, "fault": [faults.get(name, "") for name in names]}


def fill_images(
    model: LoadedModel, pictures: list[Pixels], hidden: list[Hole], device: torch.device
) -> list[Pixels]:
    """Fill images of any sizes; every pixel outside its hole is returned unchanged.

    Args:
        model: what fills.
        images: uint8 (H, W, 3).
        hidden: bool (H, W), True where to fill.
        device: where the model is.
    """
    if not pictures:
        return []
    side = model.side
    # The network takes a hole with its ring of known context and shrinks it by that itself.
    ring = np.ones((2 * model.objective.overlap + 1,) * 2, np.uint8)
    holes = [
        cv2.dilate(touched_pixels(hole, side, side).astype(np.uint8), ring) > 0 for hole in hidden
    ]
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

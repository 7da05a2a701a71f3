"""Fill a batch of images and write them."""

import io
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image

from pipelines import storage
from pipelines.data.hole_masks import Hole
from pipelines.data.images import ImageArray
from pipelines.inpaint.read import HoleSource, UnreadableImage, read_image
from pipelines.inpaint.sources import Source, output_name
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.models.fill import fill_photographs

FEW_PIXELS = 20_000_000  # of images that are held at once, in the mean of a batch


class Filler:
    """Holds the model, reads, fills and writes; for many images an actor of Ray Data."""

    def __init__(self, model: LoadedModel, holes: HoleSource, output: str) -> None:
        """The model moves to a GPU where there is one."""
        self._model, self._holes, self._output = model, holes, output
        model.generator.to("cuda" if torch.cuda.is_available() else "cpu")

    def fill(self, sources: Iterable[tuple[str, Source]]) -> list[dict[str, str]]:
        """Name, fault and note of each image; the fault is empty where it was filled."""
        results: list[dict[str, str]] = []
        waiting: list[tuple[str, ImageArray, Hole]] = []
        overlap = self._model.objective.overlap
        for name, source in sources:
            try:
                image, hole, note = read_image(name, source, self._holes, overlap=overlap)
            except UnreadableImage as error:
                results.append({"name": name, "fault": str(error), "note": ""})
                continue
            results.append({"name": name, "fault": "", "note": note})
            waiting.append((name, image, hole))
            if sum(held.size // 3 for _, held, _ in waiting) >= FEW_PIXELS:
                self._write(waiting)
                waiting = []
        self._write(waiting)
        return results

    def _write(self, waiting: list[tuple[str, ImageArray, Hole]]) -> None:
        filled = fill_photographs(
            self._model, [image for _, image, _ in waiting], [hole for _, _, hole in waiting]
        )
        for (name, _, _), image in zip(waiting, filled, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="png")
            storage.publish(storage.join(self._output, output_name(name)), buffer.getvalue())


class FillerActor:
    """A `Filler` for Ray Data: loads the model once per process."""

    def __init__(self, model_uri: str, holes: HoleSource, output: str) -> None:
        """Read the model folder."""
        self._filler = Filler(files.load_model(model_uri), holes, output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Columns of `Filler.fill`."""
        sources = zip(map(str, batch["name"]), map(str, batch["image"]), batch["mask"], strict=True)
        results = self._filler.fill(
            (name, Source(image, 0, str(mask) or None, None)) for name, image, mask in sources
        )
        return {column: [row[column] for row in results] for column in ("name", "fault", "note")}

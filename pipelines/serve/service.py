"""What the service does, without HTTP: decode, fill in batches, embed, renew models."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ce_model.training import make_views
from pipelines.data import hole_masks, untrusted
from pipelines.data.hole_masks import BadMask, Hole, Polarity
from pipelines.data.images import ImageArray
from pipelines.data.untrusted import BadImage, Limits
from pipelines.models.fill import fill_photographs
from pipelines.serve.batcher import Batcher
from pipelines.serve.bodies import Refused
from pipelines.serve.config import ServeConfig
from pipelines.serve.methods import METHODS
from pipelines.serve.served import Served, ServedModels

PNG_EFFORT = 1  # of 9: twelve million pixels in half a second, a tenth larger than at 6


class Job(NamedTuple):
    """A photograph to be filled."""

    served: Served
    image: ImageArray
    hole: Hole


class Filled(NamedTuple):
    """An answer."""

    png: bytes
    pixels: int
    """That were filled."""
    name: str
    version: str | None
    note: str


class Service:
    """Models with a queue in front of them."""

    def __init__(self, models: ServedModels, config: ServeConfig) -> None:
        """The models are loaded."""
        self.models, self.config = models, config
        self._limits = Limits(
            max_pixels=config.max_pixels, advice="shrink it, or start with --max-pixels"
        )
        self.batcher: Batcher[Job, ImageArray] = Batcher(fill_jobs, config.batch_size)

    async def fill(self, image: bytes, mask: bytes, name: str, polarity: Polarity) -> Filled:
        """The image with its hole filled, as PNG.

        Raises:
            Refused: an image, mask or model that cannot be used.
        """
        rgb = await asyncio.to_thread(self._open, image)
        try:
            hole, note = await asyncio.to_thread(
                hole_masks.read_mask, mask, rgb.shape[:2],
                polarity=polarity, limits=self._limits,
            )  # fmt: skip
        except BadMask as error:
            raise Refused(422, str(error)) from None
        version = None
        if name in METHODS:
            filled = await asyncio.to_thread(METHODS[name], rgb, hole)
        else:
            served = self._model(name)
            name, version = served.name, served.version
            filled = await self.batcher.do(Job(served, rgb, hole))
        png = await asyncio.to_thread(encode_png, filled)
        return Filled(png, int(hole.sum()), name, version, note)

    async def embed(self, image: bytes, name: str) -> tuple[Served, NDArray[np.float32]]:
        """Features of a whole image, float32 (D,).

        Raises:
            Refused: an image or model that cannot be used.
        """
        served = self._model(name)
        rgb = await asyncio.to_thread(self._open, image)
        return served, await asyncio.to_thread(features_of, served, rgb)

    def _model(self, name: str) -> Served:
        served = self.models.get(name or self.models.names[0])
        if served is None:
            known = [*self.models.names, *METHODS]
            raise Refused(404, f"model is '{name}'; it must be one of {', '.join(known)}")
        return served

    def _open(self, data: bytes) -> ImageArray:
        try:
            return untrusted.open_rgb(data, self._limits)
        except BadImage as error:
            status = 413 if error.kind == "too_large" else 422
            raise Refused(status, f"the image: {error}") from None


def fill_jobs(jobs: Sequence[Job]) -> list[ImageArray]:
    """Fill photographs; those of one model together. While an alias moves, there may be two."""
    filled: dict[int, ImageArray] = {}
    for served in {id(job.served): job.served for job in jobs}.values():
        own = [number for number, job in enumerate(jobs) if job.served is served]
        images, holes = [jobs[n].image for n in own], [jobs[n].hole for n in own]
        filled.update(zip(own, fill_photographs(served.model, images, holes), strict=True))
    return [filled[number] for number in range(len(jobs))]


@torch.no_grad()
def features_of(served: Served, rgb: ImageArray) -> NDArray[np.float32]:
    """The last layer of the encoder for an image squeezed to the model's side, float32 (D,)."""
    model = served.model
    place = next(model.generator.parameters()).device
    shrinks = min(rgb.shape[:2]) > model.side
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    square = cv2.resize(rgb, (model.side, model.side), interpolation=how)
    image = torch.from_numpy(square)[None].to(place)
    nothing = torch.zeros(image.shape[:3], dtype=torch.bool, device=place)
    views = make_views(image, nothing, model.network, model.objective)
    found = list(model.generator.encoder_features(views.context).values())[-1]
    features: NDArray[np.float32] = found.flatten().float().cpu().numpy()
    return features


def encode_png(rgb: ImageArray) -> bytes:
    """uint8 (H, W, 3) RGB -> PNG."""
    done, data = cv2.imencode(
        ".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, PNG_EFFORT]
    )
    assert done
    return bytes(data)

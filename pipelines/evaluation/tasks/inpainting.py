"""How well holes are filled: errors in the hole, on its rim and in the whole image.

Figures are on [0, 1] pixels and averaged per image. The hole is what the network did not see. A
central hole of 128 px images is for all methods the 56 px inside the 4 px ring of the authors'
code (7 px in the paper), also for models that were trained without one; where a model was trained
with another ring, its rows say so. Images without a hidden pixel count nowhere, and a group
without images has no figure (n/a).

Source: Pathak et al. 2016, arXiv:1604.07379, table 1 and section 5.1.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ce_model import training
from ce_model.hole_metrics import hole_errors, ssim
from ce_model.mask_tensors import shrink
from ce_model.masks import Strategy, mask_for
from ce_model.networks import NetworkConfig, input_side, output_side
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.images import ImageSet, read_images
from pipelines.evaluation.results import Measured, Row, png
from pipelines.evaluation.settings import InpaintingSettings, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job, Tell, silent
from pipelines.evaluation.tasks import classical
from pipelines.models.files import LoadedModel, load_model

RING_PX = 4  # shown around the central hole of 64 px; README of the authors' code, 7 in the paper
RIM_PX = 4  # hidden pixels this near to a visible one are the rim
SHARES = ((0.0, 0.1), (0.1, 0.2), (0.2, 1.01))  # groups by hidden share
CHUNK = 32
METRICS = ("L1", "L2", "PSNR", "SSIM")


class HoleSet(NamedTuple):
    """Holes of one kind, so that methods can be measured on equal terms."""

    side: int
    """Side of the image, px."""
    strategy: Strategy
    overlap: int
    """Width of the shown ring that the hole is smaller by, px."""

    @property
    def name(self) -> str:
        """The strategy, and what is unusual about the hole."""
        usual = self.overlap == usual_ring(self.side, self.strategy)
        return self.strategy if usual else f"{self.strategy} in a ring of {self.overlap} px"

    def draw(self, images: ImageSet) -> NDArray[np.bool_]:
        """bool (N, S, S): variant 0 of each image's mask, as in every validation."""
        hidden = [mask_for(images.seed, self.strategy, self.side, k, 0) for k in images.keys]
        return shrink(torch.from_numpy(np.stack(hidden)), self.overlap).numpy()


def usual_ring(side: int, strategy: Strategy) -> int:
    """Width of the ring of context that every method is shown inside the mask, px."""
    return RING_PX if (side, strategy) == (128, "central") else 0


def holes_of(
    network: NetworkConfig, overlap: int, strategies: tuple[Strategy, ...]
) -> list[HoleSet]:
    """What a model of this network and overlap can be measured on.

    A model that was trained with a ring takes no other; one without takes the usual.
    """
    side = input_side(network)
    center = output_side(network) < side
    possible = [s for s in strategies if s == "central" or not center]
    return [HoleSet(side, strategy, overlap or usual_ring(side, strategy)) for strategy in possible]


def measure_model(
    model: LoadedModel,
    images: ImageSet,
    database: ImageSet | None,
    settings: InpaintingSettings,
    dtype: torch.dtype,
) -> Measured:
    """Fill with a model, and by copying the neighbour that its features find."""
    rows: list[Row] = []
    figures: dict[str, bytes] = {}
    image = images.squares(model.side)
    model.generator.to(encoders.device())
    for holes in holes_of(model.network, model.objective.overlap, settings.strategies):
        hole = holes.draw(images)
        # A model that was trained with a ring leaves it out of the mask itself.
        hidden = holes._replace(overlap=0).draw(images) if model.objective.overlap else hole
        filled = np.concatenate(list(_predicted(model, image, hidden, dtype)))
        rows += score_predictions("this model", holes, filled, image, hole)
        figures |= _strip("this model", holes, filled, settings.panel)
        if holes.strategy == "central" and database is not None:
            copied = _copied_by_encoder(model, image, hidden[0], hole[0], database, dtype)
            rows += score_predictions("neighbour, these features", holes, copied, image, hole)
            figures |= _strip("neighbour, these features", holes, copied, settings.panel)
    return Measured(rows, {"settings": settings_in_key(settings), "dtype": str(dtype)}, figures)


def measure_classical(
    kinds: Sequence[HoleSet],
    images: ImageSet,
    database: ImageSet | None,
    settings: InpaintingSettings,
    tell: Tell = silent,
) -> Measured:
    """Fill with every classical method; `tell` hears how far each one is."""
    cv2.setNumThreads(1)
    rows: list[Row] = []
    figures: dict[str, bytes] = {}
    for holes in kinds:
        image, hole = images.squares(holes.side), holes.draw(images)
        figures |= _strip("picture", holes, image, settings.panel)
        context = np.where(hole[..., None], np.uint8(128), image)
        figures |= _strip("context", holes, context, settings.panel)
        for name in settings.baselines:
            fill = classical.FILLS[name]
            filled = np.empty_like(image)
            for at, (given, hidden) in enumerate(zip(image, hole, strict=True)):
                filled[at] = fill(given, hidden) if hidden.any() else given
                tell(f"{name} {at + 1}/{len(image)}")
            rows += score_predictions(name, holes, filled, image, hole)
            figures |= _strip(name, holes, filled, settings.panel)
        if holes.strategy == "central" and database is not None:
            stored = database.squares(holes.side)
            copied = classical.neighbour_fill(
                image,
                hole[0],
                classical.hog_features(image, hole[0]),
                stored,
                classical.hog_features(stored, hole[0]),
            )
            rows += score_predictions("neighbour, HOG", holes, copied, image, hole)
            figures |= _strip("neighbour, HOG", holes, copied, settings.panel)
    return Measured(rows, {"settings": settings_in_key(settings)}, figures)


def score_predictions(
    method: str,
    holes: HoleSet,
    filled: NDArray[np.uint8],
    image: NDArray[np.uint8],
    hole: NDArray[np.bool_],
) -> list[Row]:
    """One row per region, and for the hole one per group of hidden share.

    Args:
        method: how it was filled.
        holes: what was hidden.
        filled, image: uint8 (N, S, S, 3).
        hole: bool (N, S, S).
    """
    errors = per_image(filled, image, hole)
    share = hole.mean(axis=(1, 2))
    common: Row = {"method": method, "holes": holes.name, "side": str(holes.side)}
    rows = [
        {**common, "region": region, "hidden": "any", **_means(errors[region], share > 0)}
        for region in errors
    ]
    for low, high in SHARES if holes.strategy != "central" else ():
        chosen = (share > low) & (share <= high)
        hidden = f"{low:.0%} to {min(high, 1):.0%}"
        rows.append(
            {**common, "region": "hole", "hidden": hidden, **_means(errors["hole"], chosen)}
        )
    return rows


def per_image(
    filled: NDArray[np.uint8], image: NDArray[np.uint8], hole: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Errors (N, 4) in the order of METRICS for the regions hole, rim and whole."""
    regions = {
        "hole": hole,
        "rim": hole & ~shrink(torch.from_numpy(hole), RIM_PX).numpy(),
        "whole": np.ones_like(hole),
    }
    return {
        name: np.concatenate(list(_errors(filled, image, region)))
        for name, region in regions.items()
    }


def _errors(
    filled: NDArray[np.uint8], image: NDArray[np.uint8], region: NDArray[np.bool_]
) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(image), CHUNK):
        chunk = slice(start, start + CHUNK)
        prediction, target = (
            torch.from_numpy(a[chunk]).permute(0, 3, 1, 2) / 255 for a in (filled, image)
        )
        where = torch.from_numpy(region[chunk])[:, None]
        errors = hole_errors(prediction, target, where)
        similarity = ssim(prediction, target, where)
        yield torch.stack([*errors, similarity], dim=1).double().numpy()


def _means(errors: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Row:
    kept = errors[chosen]
    kept = kept[np.isfinite(kept).all(axis=1)]
    values = kept.mean(axis=0).tolist() if len(kept) else [None] * len(METRICS)
    return {"pictures": float(len(kept)), **dict(zip(METRICS, values, strict=True))}


def _predicted(
    model: LoadedModel, image: NDArray[np.uint8], hidden: NDArray[np.bool_], dtype: torch.dtype
) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(image), CHUNK):
        chunk = slice(start, start + CHUNK)
        filled = training.fill(
            model.generator,
            torch.from_numpy(image[chunk]).to(encoders.device()),
            torch.from_numpy(hidden[chunk]).to(encoders.device()),
            network=model.network,
            objective=model.objective,
            dtype=dtype,
        )
        yield filled.cpu().numpy()


def context_features(
    model: LoadedModel, image: NDArray[np.uint8], hidden: NDArray[np.bool_], dtype: torch.dtype
) -> NDArray[np.float64]:
    """The encoder's last features (N, D) of the visible context."""
    rows = []
    place = encoders.device()
    with torch.inference_mode(), torch.autocast(place.type, dtype, dtype != torch.float32):
        for start in range(0, len(image), CHUNK):
            chunk = slice(start, start + CHUNK)
            views = training.make_views(
                torch.from_numpy(image[chunk]).to(place),
                torch.from_numpy(hidden[chunk]).to(place),
                model.network,
                model.objective,
            )
            features = model.generator.encoder(views.context).flatten(1)
            rows.append(features.double().cpu().numpy())
    return np.concatenate(rows)


def _copied_by_encoder(
    model: LoadedModel,
    image: NDArray[np.uint8],
    hidden: NDArray[np.bool_],
    hole: NDArray[np.bool_],
    database: ImageSet,
    dtype: torch.dtype,
) -> NDArray[np.uint8]:
    """Nearest-neighbour inpainting for central holes, which are the same in all images.

    Args:
        hidden: bool (S, S), the mask that the model is given.
        hole: bool (S, S), what it does not see then.
    """
    stored = database.squares(model.side)
    features, stored_features = (
        context_features(model, x, np.repeat(hidden[None], len(x), axis=0), dtype)
        for x in (image, stored)
    )
    return classical.neighbour_fill(image, hole, features, stored, stored_features)


def _strip(method: str, holes: HoleSet, filled: NDArray[np.uint8], count: int) -> dict[str, bytes]:
    """The first images side by side, as one PNG."""
    if not count:
        return {}
    strip = np.concatenate(list(filled[:count]), axis=1)
    return {f"{holes.name} {holes.side} px | {method}": png(strip)}


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    images = read_images(job.data_uri, "val", config.inpainting.images)
    database = None
    if job.database_uri is not None:
        database = read_images(job.database_uri, "train", config.inpainting.database)
    if job.subject is None:
        return measure_classical(job.holes, images, database, config.inpainting, job.tell)
    model = load_model(job.subject.uri)
    return measure_model(model, images, database, config.inpainting, dtype)


TASK = EvaluationTask(
    name="inpainting",
    settings="inpainting",
    measure=_measure_job,
    tables=("holes", "side", "region", "hidden"),
    seeded=False,
)

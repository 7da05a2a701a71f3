"""Nearest neighbours of the visible context, as in figure 8 of the paper.

The centre is hidden from query and database alike, and the mean of the encoder's features over the
database is taken off both. Where images have labels, the score is the share of the nearest
neighbours with the query's label.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ce_model.masks import mask_for
from ce_model.networks import input_side
from ce_model.transfer import metrics
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.images import ImageSet, pick_evenly, read_images, to_network
from pipelines.evaluation.results import Measured, Row, png
from pipelines.evaluation.settings import RetrievalSettings, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job
from pipelines.evaluation.tasks import classical
from pipelines.evaluation.tasks.probes import CALIBRATION_IMAGES
from pipelines.models.resolve import ModelRef

CHUNK = 32
DEPTHS = (1, 5)
SHEET_PX = 96


def measure(
    subject: ModelRef,
    seed: int,
    queries: ImageSet,
    database: ImageSet,
    side: int,
    settings: RetrievalSettings,
    dtype: torch.dtype,
) -> Measured:
    """Neighbours by the encoder's last features, and by HOG for comparison."""
    requested, stored = queries.squares(side), database.squares(side)
    hole = mask_for(0, "central", side, "", 0)
    typical = stored[pick_evenly(len(stored), CALIBRATION_IMAGES)]
    encoder = encoders.encoder_of(subject, seed, _contexts(typical, hole))
    wanted, known = (_features(encoder, part, hole, dtype) for part in (requested, stored))
    mean = known.mean(0)
    found = {
        "encoder": metrics.nearest(wanted - mean, known - mean, max(DEPTHS)),
        "HOG": metrics.nearest(
            classical.hog_features(requested, hole),
            classical.hog_features(stored, hole),
            max(DEPTHS),
        ),
    }  # fmt: skip
    rows: list[Row] = []
    labelled = bool((queries.labels >= 0).all() and (database.labels >= 0).all())
    for name, nearest in found.items():
        row: Row = {"features": name}
        for depth in DEPTHS:
            hits = database.labels[nearest[:, :depth]] == queries.labels[:, None]
            row[f"precision at {depth}"] = float(hits.mean()) if labelled else None
        rows.append(row)
    sheet = _sheet(requested, stored, found["encoder"], hole, settings.shown)
    figures = {"context, then its nearest neighbours": png(sheet)} if settings.shown else {}
    sizes = f"{len(database)} to search, {len(queries)} to score"
    return Measured(rows, {"settings": settings_in_key(settings), "images": sizes}, figures)


def _contexts(images: NDArray[np.uint8], hole: NDArray[np.bool_]) -> Iterator[torch.Tensor]:
    """Images with mid-grey in the hole, ready for the network."""
    grey = np.where(hole[None, :, :, None], np.uint8(128), images)
    for start in range(0, len(grey), CHUNK):
        yield to_network(grey[start : start + CHUNK])


def _features(
    encoder: nn.Module,
    images: NDArray[np.uint8],
    hole: NDArray[np.bool_],
    dtype: torch.dtype,
) -> NDArray[np.float64]:
    place = encoders.device()
    encoder = encoder.to(place)
    with torch.inference_mode(), torch.autocast(place.type, dtype, dtype != torch.float32):
        rows = [
            encoder(batch.to(place)).flatten(1).double().cpu().numpy()
            for batch in _contexts(images, hole)
        ]
    return np.concatenate(rows)


def _sheet(
    requested: NDArray[np.uint8],
    stored: NDArray[np.uint8],
    nearest: NDArray[np.int64],
    hole: NDArray[np.bool_],
    count: int,
) -> NDArray[np.uint8]:
    """One row per query: its context, then its neighbours."""
    context = np.where(hole[None, :, :, None], np.uint8(128), requested[:count])
    step = max(1, requested.shape[1] // SHEET_PX)
    rows = [
        np.concatenate([context[at], *stored[nearest[at]]], axis=1)[::step, ::step]
        for at in range(len(context))
    ]
    return np.concatenate(rows) if rows else np.zeros((1, 1, 3), np.uint8)


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    settings = config.retrieval
    queries = read_images(job.data_uri, "val", settings.queries)
    database = read_images(job.data_uri, "train", settings.database)
    side = input_side(job.subject.network)
    return measure(job.subject, job.seed, queries, database, side, settings, dtype)


TASK = EvaluationTask(
    name="retrieval",
    settings="retrieval",
    measure=_measure_job,
    tables=("features",),
)

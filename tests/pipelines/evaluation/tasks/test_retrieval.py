"""Nearest neighbours of contexts: what is compared, and with which statistics."""

from typing import Any

import numpy as np
import pytest
import torch

from ce_model.networks import NetworkConfig
from ce_model.transfer import metrics
from pipelines.evaluation import encoders
from pipelines.evaluation.data.images import ImageSet
from pipelines.evaluation.results import png
from pipelines.evaluation.settings import RetrievalSettings
from pipelines.evaluation.tasks import retrieval
from pipelines.models import resolve

RANDOM = resolve.untrained_ref("random", "random", NetworkConfig(preset="inpaint", bottleneck=8))


def noise(count: int, seed: int) -> ImageSet:
    values = np.random.default_rng(seed).integers(0, 256, (count, 128, 128, 3)).astype(np.uint8)
    return of(list(values))


def of(values: list[Any]) -> ImageSet:
    none = np.full(len(values), -1, np.int64)
    return ImageSet(tuple(map(str, none)), none, tuple(map(png, values)), (), 0)


def compared(
    queries: ImageSet, database: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any]:
    """Features of queries and database as they are compared."""
    seen = []

    def spied(first: Any, second: Any, k: int) -> Any:
        seen.append((first, second))
        return nearest(first, second, k)

    nearest = metrics.nearest
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "nearest", spied)
        settings = RetrievalSettings(shown=0)
        retrieval.measure(RANDOM, 0, queries, database, 128, settings, torch.float32)
    return seen[0]


def test_a_query_is_compared_alike_whatever_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, database = noise(3, seed=0), noise(4, seed=1)
    together, stored = compared(queries, database, monkeypatch)
    alone, _ = compared(queries.take([0]), database, monkeypatch)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-4, atol=1e-5)
    assert np.abs(alone).max() > 1e-3
    np.testing.assert_allclose(stored.mean(0), 0, atol=1e-9)


def test_the_encoder_is_calibrated_on_the_whole_database(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    encoder_of = encoders.encoder_of

    def spied(subject: resolve.ModelRef, seed: int, batches: Any) -> torch.nn.Sequential:
        kept = list(batches)
        seen.extend(float(image[0, 0, 0]) for batch in kept for image in batch)
        return encoder_of(subject, seed, kept)

    monkeypatch.setattr(encoders, "encoder_of", spied)
    monkeypatch.setattr(retrieval, "CALIBRATION_IMAGES", 2)
    database = of([np.full((128, 128, 3), shade, np.uint8) for shade in (0, 0, 255, 255)])
    retrieval.measure(RANDOM, 0, database, database, 128, RetrievalSettings(), torch.float32)
    assert seen == [-1.0, 1.0]

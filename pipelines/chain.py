"""Stages in a row: whatever a pretraining run lacks is made first."""

from typing import Any

from ce_model.masks import STRATEGIES
from pipelines import cluster, dataset, prepare, pretrain, samples, storage, tracking
from pipelines.prepare import PrepareConfig
from pipelines.pretrain import PretrainConfig


def run(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain; raw pictures, or the sample pictures without a source, are prepared first."""
    if config.source is not None and not dataset.is_dataset(config.source):
        storage.require_folder(config.source, "source")
    tracking.tracking_uri(config.tracking_uri, config.store)  # refused before hours of preparing
    with cluster.connected():
        return pretrain.run(config, ensure_dataset(config))


def ensure_dataset(config: PretrainConfig) -> str:
    """The URI of a prepared dataset with the holes that the config asks for."""
    if config.source is None:
        source = samples.ensure(config.store)
    elif dataset.is_dataset(config.source):
        return config.source
    else:
        source = config.source
    usual = PrepareConfig(source=source).strategies
    strategies = tuple(s for s in STRATEGIES if s in {*usual, config.holes})
    return prepare.run(PrepareConfig(source=source, store=config.store, strategies=strategies))

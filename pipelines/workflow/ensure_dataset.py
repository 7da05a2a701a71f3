"""Stages in a row: whatever a pretraining run lacks is made first."""

from typing import Any

from ce_model.masks import STRATEGIES, Strategy
from pipelines import storage
from pipelines.data import manifest, sample_images
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.pretrain.run import pretrain_model
from pipelines.runtime import cluster
from pipelines.tracking import client


def pretrain_on_source(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain; raw images, or the sample images without a source, are prepared first."""
    uri = client.tracking_uri(config.tracking_uri, config.store)
    if config.source is None or not manifest.is_dataset(config.source):
        if config.source is not None:
            storage.require_folder(config.source, "source")
        client.require_access(uri)  # refused before hours of preparing
    with cluster.connect_once():
        return pretrain_model(config, ensure_dataset(config))


def ensure_dataset(config: PretrainConfig, strategies: tuple[Strategy, ...] = ()) -> str:
    """The URI of a prepared dataset with the holes that the config and `strategies` ask for."""
    if config.source is None:
        source = sample_images.ensure(config.store)
    elif manifest.is_dataset(config.source):
        return config.source
    else:
        source = config.source
    usual = PrepareConfig(source=source).strategies
    wanted = {*usual, resolve_recipe(config).strategy, *strategies}
    cut = tuple(s for s in STRATEGIES if s in wanted)
    return prepare_dataset(PrepareConfig(source=source, store=config.store, strategies=cut))

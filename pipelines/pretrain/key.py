"""The key that names the result of a training: equal settings and data, equal key."""

from dataclasses import asdict, fields
from typing import Any

from ce_model.network_config import network_in_key
from ce_model.training import Objective, Optimization
from pipelines import storage
from pipelines.data.manifest import Manifest
from pipelines.pretrain import config as learning
from pipelines.pretrain.config import NO_COLOR, Color, PretrainConfig

KEY_VERSION = 2  # part of every key: raise it when the same settings train differently
# How a run is carried out, as opposed to what it computes: never part of a key.
NOT_IN_KEY = {
    "source",
    "store",
    "num_workers",
    "threads_per_worker",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "validate_every",
    "max_failures",
    "summary",
    "tracking_uri",
    "experiment",
}
LATER = {field.name for field in fields(Optimization)} | {
    "start", "feature_matching", "target", "layers", "crop_area", "crop_ratio", "flip",
}  # fmt: skip
"""Settings that came after the first keys: in a key only where they depart from the paper's."""


def settings_in_key(config: PretrainConfig, mean_rgb: Color = NO_COLOR) -> dict[str, Any]:
    """What the settings that matter come to; no path, time or worker count.

    A default is the same setting when it is given: the fields of the network and of the objective
    are named as those of the config, and stand in their place. The number of workers is left out
    because the stream does not depend on it.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_KEY | LATER}
    recipe = learning.resolve_recipe(config, mean_rgb)
    generator, discriminator = recipe.learning_rates
    return {
        **settings,
        **network_in_key(recipe.network),
        **{k: v for k, v in asdict(recipe.objective).items() if k not in LATER},
        "version": KEY_VERSION,
        "strategy": recipe.strategy,
        "learning_rate": generator,
        "discriminator_learning_rate": discriminator if recipe.objective.adversarial else None,
        "shorter": recipe.shorter,
        **_departures(recipe.optimization, Optimization()),
        **{k: v for k, v in _departures(recipe.objective, Objective()).items() if k in LATER},
        **({} if recipe.crop is None else {"crop": asdict(recipe.crop)}),
        **({} if config.flip else {"flip": False}),
    }


def _departures(wanted: Any, paper: Any) -> dict[str, Any]:
    usual = asdict(paper)
    return {name: value for name, value in asdict(wanted).items() if value != usual[name]}


def pretrain_key(config: PretrainConfig, manifest: Manifest) -> str:
    """Names the result: the settings that matter and the dataset."""
    settings = settings_in_key(config, manifest.mean_rgb)
    return storage.content_key({"stage": "pretrain", "dataset": manifest.fingerprint, **settings})


assert {field.name for field in fields(PretrainConfig)} >= NOT_IN_KEY

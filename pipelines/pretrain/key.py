"""The key that names the result of a training: equal settings and data, equal key."""

from dataclasses import asdict, fields
from typing import Any

from ce_model.network_config import INPAINTING, NetworkConfig, network_in_key
from ce_model.training import Objective, Optimization
from pipelines import storage
from pipelines.data.manifest import Manifest
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.initial import InitialWeights, find_initial
from pipelines.pretrain.recipe import DRAWN, NO_COLOR, Color, resolve_recipe
from pipelines.tracking.client import tracking_uri

KEY_VERSION = 2  # part of every key: raise it when the same settings train differently
FEATURES_VERSION = 2  # the same for preset features: since 2 its last layer begins at zero
# How a run is carried out, as opposed to what it computes: never part of a key.
NOT_IN_KEY = {
    "source",
    "store",
    "cache_folder",
    "cache_gb",
    "num_workers",
    "threads_per_worker",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "time_limit_s",
    "log_every",
    "validate_every",
    "validation_images",
    "max_failures",
    "stall_timeout_s",
    "log_to",
    "profile_steps",
    "probe_every",
    "probe_images",
    "summary",
    "tracking_uri",
    "experiment",
}
LATER = {
    *("export", "init", "init_map", "scale_learning_rate", "start", "feature_matching", "target"),
    *("layers", "encoder", "crop_area", "crop_ratio", "flip", "colour_jitter", "grey"),
    *("pretext", "exemplar_classes"),
    *(field.name for field in fields(Optimization)),
}
"""Settings that came after the first keys: in a key only where they depart from the paper's."""


def settings_in_key(
    config: PretrainConfig, mean_rgb: Color = NO_COLOR, rows: int | None = None
) -> dict[str, Any]:
    """What the settings that matter come to; no path, time or worker count.

    A default is the same setting when it is given: the fields of the network and of the objective
    are named as those of the config, and stand in their place. The number of workers is left out
    because the stream does not depend on it.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_KEY | LATER}
    recipe = resolve_recipe(config, mean_rgb, rows)
    initial = find_initial_of(config)
    generator, discriminator = recipe.learning_rates
    return {
        **settings,
        "validation_images": 256,  # in every key since the first, whatever it is
        **network_in_key(recipe.network),
        **{k: v for k, v in asdict(recipe.objective).items() if k not in LATER},
        "version": KEY_VERSION,
        **({"features_version": FEATURES_VERSION} if _predicts_cells(recipe.network) else {}),
        "strategy": recipe.strategy,
        "learning_rate": generator,
        "discriminator_learning_rate": discriminator if recipe.objective.adversarial else None,
        "shorter": recipe.shorter,
        **_departures(recipe.optimization, Optimization()),
        **{k: v for k, v in _departures(recipe.objective, Objective()).items() if k in LATER},
        **({"export": "raw"} if recipe.optimization.ema and recipe.export == "raw" else {}),
        **({} if initial is None else {"init": initial.in_key}),
        **({"init": "kmeans"} if recipe.init == "kmeans" else {}),
        **({} if recipe.crop is None else {"crop": asdict(recipe.crop)}),
        **({} if config.flip else {"flip": False}),
        **({} if recipe.colour is None else {"colour": asdict(recipe.colour)}),
    }


def _predicts_cells(network: NetworkConfig) -> bool:
    return network.preset == "features" and network.pretext == INPAINTING


def _departures(wanted: Any, paper: Any) -> dict[str, Any]:
    usual = asdict(paper)
    return {name: value for name, value in asdict(wanted).items() if value != usual[name]}


def find_initial_of(config: PretrainConfig) -> InitialWeights | None:
    """The weights to start from; None where they are drawn."""
    if config.init is None or config.init in DRAWN:
        return None
    server = tracking_uri(config.tracking_uri, config.store)
    return find_initial(config.init, config.init_map, store=config.store, tracking_uri=server)


def pretrain_key(config: PretrainConfig, manifest: Manifest) -> str:
    """Names the result: the settings that matter and the dataset."""
    return _keys(config, manifest)[0]


def keys_of_all_versions(config: PretrainConfig, manifest: Manifest) -> set[str]:
    """All keys that this training may have in a store."""
    return set(_keys(config, manifest))


def _keys(config: PretrainConfig, manifest: Manifest) -> tuple[str, str]:
    """Today's key and that of before 2026-11-28, which held the number of validation images."""
    # A class of exemplar is a training image.
    rows = manifest.rows("train") if config.pretext == "exemplar" else None
    settings = settings_in_key(config, manifest.mean_rgb, rows)
    before = {**settings, "validation_images": config.validation_images}
    today, earlier = (
        storage.content_key({"stage": "pretrain", "dataset": manifest.fingerprint, **each})
        for each in (settings, before)
    )
    return today, earlier


def stage_uri(store: str, key: str) -> str:
    """Where a training leaves what it makes."""
    return storage.join(storage.absolute(store), "pretrain", key[:16])


def stored_key(config: PretrainConfig, manifest: Manifest) -> str:
    """The key under which the store has this training; today's where it has none."""
    today, earlier = _keys(config, manifest)
    if earlier != today:
        has_today, has_earlier = (
            storage.is_folder(stage_uri(config.store, key)) for key in (today, earlier)
        )
        if has_earlier and not has_today:
            return earlier
    return today


assert {field.name for field in fields(PretrainConfig)} >= NOT_IN_KEY

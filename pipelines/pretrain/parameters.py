"""The parameters of an MLflow run: every setting as it is used, and what was given to get them."""

from dataclasses import asdict, fields
from typing import Any

from ce_model.network_config import INPAINTING, NetworkConfig
from ce_model.training.optimization import WITH_BETAS, WITH_MOMENTUM
from pipelines.errors import redact
from pipelines.pretrain.config import OF_HOLES, PretrainConfig
from pipelines.pretrain.recipe import Recipe

# Where, not what.
NOT_PARAMETERS = ("store", "tracking_uri", "experiment", "summary", "cache_folder", "cache_gb")
USED_BY = {
    "norm": ("alexnet",),
    "dropout": ("alexnet",),
    "groups": ("alexnet", "features"),
    "bottleneck": ("inpaint",),
    "target": ("features",),
    "layers": ("features",),
    "encoder": ("features",),
    "pretext": ("features",),
    "exemplar_classes": ("features",),
}


def effective(
    config: PretrainConfig, recipe: Recipe, *, source: str, use_gpu: bool
) -> dict[str, Any]:
    """What the training computes with; what it does not use is left out.

    Args:
        config: what was asked for.
        recipe: what that comes to.
        source: where the images of the dataset came from.
        use_gpu: whether workers have GPUs.
    """
    objective, optimization = recipe.objective, recipe.optimization
    found: dict[str, Any] = {**asdict(config), **_used(recipe.network)}
    found |= {
        "strategy": recipe.strategy,
        "output": recipe.network.output,
        "adversarial": objective.adversarial,
        "reconstruction": objective.reconstruction,
        "region": objective.region,
        "overlap": objective.overlap,
        "ring_weight": objective.ring_weight if objective.overlap else None,
        "feature_matching": objective.feature_matching if objective.adversarial else None,
        "fill": "smooth" if objective.start == "smooth" else _rounded(objective.fill),
        "learning_rate": recipe.learning_rates.generator,
        "discriminator_learning_rate": (
            recipe.learning_rates.discriminator if objective.adversarial else None
        ),
        **asdict(optimization),
        "milestones": optimization.milestones or None,
        "export": recipe.export,
        "shorter": recipe.shorter if recipe.crop is None else None,
        "crop_area": recipe.crop and tuple(recipe.crop.area),
        "crop_ratio": recipe.crop and tuple(recipe.crop.ratio),
        "validate_every": config.validate_every or config.checkpoint_every,
        "init": recipe.init,
        "init_map": config.init_map or None,
        "source": source or config.source,
        "use_gpu": use_gpu,
    }
    if recipe.network.pretext != INPAINTING:
        found |= dict.fromkeys(OF_HOLES)
    found["exemplar_classes"] = recipe.network.exemplar_classes or None
    if optimization.optimizer not in WITH_MOMENTUM:
        found["momentum"] = None
    if optimization.optimizer not in WITH_BETAS:
        found["betas"] = None
    unused = {name for name, presets in USED_BY.items() if config.preset not in presets}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in NOT_PARAMETERS and name not in unused
    }


def _used(network: NetworkConfig) -> dict[str, Any]:
    return {name: getattr(network, name) for name in USED_BY}


def _rounded(colour: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in colour)


def given(config: PretrainConfig) -> dict[str, Any]:
    """The settings that differ from the usual ones: with them the command can be given again."""
    usual = PretrainConfig()
    return {
        each.name: _shown(getattr(config, each.name))
        for each in fields(config)
        if getattr(config, each.name) != getattr(usual, each.name)
        and each.name not in NOT_PARAMETERS
    }


def _shown(value: Any) -> Any:
    """Tells no password."""
    if isinstance(value, tuple):
        return [_shown(each) for each in value]
    return redact(value) if isinstance(value, str) else value

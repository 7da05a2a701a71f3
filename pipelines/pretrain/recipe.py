"""What a training comes to, every setting with its default filled in."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ce_model.choices import Precision
from ce_model.masks import Strategy
from ce_model.network_config import (
    ALEXNET,
    INPAINTING,
    NetworkConfig,
    about_training,
    input_side,
)
from ce_model.training import (
    MUON_MOMENTUM,
    LearningRates,
    Objective,
    Optimization,
    default_learning_rates,
    default_objective,
    default_optimization,
    default_shorter,
    default_strategy,
    discriminator_rate,
)
from pipelines.data.colour_jitter import ColourJitter
from pipelines.data.stream_plan import CROP_RATIO, ResizedCrop

if TYPE_CHECKING:
    from pipelines.pretrain.config import PretrainConfig

Export = Literal["raw", "ema"]
PAPER_BATCH = 64  # images per step for which the learning rates were chosen
Color = tuple[float, float, float]
NO_COLOR: Color = (0.0, 0.0, 0.0)
EXEMPLAR_CLASSES = 8000  # beyond about so many the paper's features did not gain
DRAWN = ("random", "kmeans")  # what --init may be instead of weights that exist
FEATURES_AREA = (0.35, 1.0)  # share of an image that a crop of preset features takes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a config comes to, every default filled in: what the task, the run and the key hold."""

    strategy: Strategy
    """Where the holes are."""
    network: NetworkConfig
    objective: Objective
    learning_rates: LearningRates
    optimization: Optimization
    export: Export
    """Which weights the model has."""
    shorter: int
    """Shorter side before the crop, px; 0: as stored."""
    crop: ResizedCrop | None
    """Random crops that are resized; None: crops of the network's side."""
    colour: ColourJitter | None = None
    """Random changes of the colours."""
    init: str = "random"
    """Weights to start from: drawn at random, kmeans, or what --init names."""

    @property
    def side(self) -> int:
        """Side of the images the network reads, px."""
        return input_side(self.network)

    @property
    def about(self) -> str:
        """Which network learns from what, in words."""
        return about_training(self.network, self.strategy)

    @property
    def learned_from(self) -> dict[str, str]:
        """For records: the holes, or the sibling pretext that has none."""
        if self.network.pretext == INPAINTING:
            return {"strategy": self.strategy}
        return {"pretext": self.network.pretext}

    @property
    def fixed_split(self) -> Literal["train", "val"]:
        """Split of the validation images: the classes of exemplar are training images."""
        return "train" if self.network.pretext == "exemplar" else "val"


def resolve_recipe(
    config: "PretrainConfig", mean_rgb: Color = NO_COLOR, rows: int | None = None
) -> Recipe:
    """Every setting as it is used: what is given, else the preset's own.

    Args:
        config: the settings as given.
        mean_rgb: mean colour of the dataset, 0 to 255; before there is one, black stands for it.
        rows: training images of the dataset; before there is one, as many as can be used.
    """
    strategy = config.strategy or default_strategy(config.preset)
    center = config.preset == "inpaint" and strategy == "central"
    network = NetworkConfig(
        preset=config.preset,
        output="center" if center else "full",
        norm=config.norm,
        groups=config.groups,
        encoder=config.encoder,
        antialias=config.preset == "unet",
        pretext=config.pretext,
        exemplar_classes=_exemplar_classes(config, rows),
        **{**_layers(config), **_given(config, "dropout", "bottleneck", "target", "layers")},
    )
    usual = default_objective(network)
    objective = replace(
        usual,
        fill=config.fill if isinstance(config.fill, tuple) else mean_rgb,
        start=usual.start if config.fill is None else _start(config.fill),
        **_given(config, "reconstruction", "adversarial", "feature_matching", "overlap",
                 "ring_weight", "region"),
    )  # fmt: skip
    optimization = _optimization(config, default_optimization(network, config.steps))
    crop = _crop(config)
    # Where crops are resized, the centre crop is of the whole image.
    shorter = default_shorter(network) if crop is None else input_side(network)
    return Recipe(
        strategy=strategy,
        network=network,
        objective=objective,
        learning_rates=_learning_rates(config, network, strategy, objective.adversarial),
        optimization=optimization,
        export=config.export or ("ema" if optimization.ema else "raw"),
        shorter=shorter if config.shorter is None else config.shorter,
        crop=crop,
        colour=_colour(config),
        init=config.init or _usual_init(network),
    )


def _usual_init(network: NetworkConfig) -> str:
    """How weights are drawn; sibling pretexts, rows beside the paper's, draw them as it does."""
    own = network.preset == "features" and network.pretext == INPAINTING
    return "kmeans" if own and network.encoder == ALEXNET else "random"


def _layers(config: "PretrainConfig") -> dict[str, Any]:
    return {} if config.pretext == INPAINTING else {"layers": "dense"}


def _exemplar_classes(config: "PretrainConfig", rows: int | None) -> int:
    if config.pretext != "exemplar":
        return 0
    return config.exemplar_classes or min(EXEMPLAR_CLASSES, rows or EXEMPLAR_CLASSES)


def measured_in(config: "PretrainConfig") -> Precision:
    """The arithmetic of measuring what was trained: fp16 is for training, with its scaled loss."""
    return "auto" if config.precision == "fp16" else config.precision


def _start(fill: Color | Literal["smooth", "colour"]) -> Literal["smooth", "colour"]:
    return "smooth" if fill == "smooth" else "colour"


def _crop(config: "PretrainConfig") -> ResizedCrop | None:
    usual = FEATURES_AREA if config.preset == "features" and config.shorter is None else None
    area = config.crop_area or usual
    if area is None:
        return None
    return ResizedCrop(area=area, ratio=config.crop_ratio or CROP_RATIO)


def _colour(config: "PretrainConfig") -> ColourJitter | None:
    changes = config.colour_jitter or (0.0, 0.0, 0.0, 0.0)
    names = ("brightness", "contrast", "saturation", "hue")
    jitter = ColourJitter(**dict(zip(names, changes, strict=True)), grey=config.grey)
    return None if jitter == ColourJitter() else jitter


def _given(config: "PretrainConfig", *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _learning_rates(
    config: "PretrainConfig", network: NetworkConfig, strategy: Strategy, adversarial: float
) -> LearningRates:
    usual = default_learning_rates(network, strategy, adversarial)
    factor = config.batch_size / PAPER_BATCH
    factor = {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.scale_learning_rate]
    generator, discriminator = usual.generator * factor, usual.discriminator * factor
    if config.learning_rate is not None:
        generator = config.learning_rate
        discriminator = discriminator_rate(network, generator, adversarial)
    if config.discriminator_learning_rate is not None:
        discriminator = config.discriminator_learning_rate
    return LearningRates(generator, discriminator)


def _optimization(config: "PretrainConfig", usual: Optimization) -> Optimization:
    given = _given(config, "optimizer", "weight_decay", "betas", "momentum", "schedule",
                   "milestones", "warmup_steps", "clip_norm", "ema", "accumulate")  # fmt: skip
    if given.get("schedule", usual.schedule) != "step":
        given = {"milestones": (), **given}
    elif not given.get("milestones", usual.milestones):
        given["milestones"] = tuple(sorted({max(1, config.steps * n // 3) for n in (1, 2)}))
    by_muon = given.get("optimizer", usual.optimizer) == "muon"
    usual = replace(
        usual,
        momentum=MUON_MOMENTUM if by_muon else Optimization.momentum,
        warmup_steps=min(usual.warmup_steps, config.steps // 10),
    )
    return replace(usual, **given)

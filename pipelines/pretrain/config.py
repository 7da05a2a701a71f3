"""Settings of a training run, and the same with every default filled in."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from ce_model.masks import Strategy
from ce_model.network_config import ALEXNET, Layers, NetworkConfig, Preset, Target, input_side
from ce_model.training import (
    ADAPTIVE,
    LearningRates,
    Objective,
    Optimization,
    Optimizer,
    Precision,
    Schedule,
    default_learning_rates,
    default_objective,
    default_optimization,
    default_shorter,
    default_strategy,
    discriminator_rate,
)
from pipelines.data.stream_plan import CROP_RATIO, WINDOW_ROWS, ResizedCrop
from pipelines.errors import UserError
from pipelines.models.encoder_names import require_encoder

LEAST = {  # what a setting must be at the least
    "steps": 1,
    "batch_size": 1,
    "seed": 0,
    "shorter": 0,
    "window_rows": 1,
    "num_workers": 1,
    "threads_per_worker": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "keep_best": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_images": 1,
    "max_failures": 0,
}
MAX_SEED = 2**64 - 1  # torch takes no larger one
Export = Literal["raw", "ema"]
PAPER_BATCH = 64  # images per step for which the learning rates were chosen
Color = tuple[float, float, float]
NO_COLOR: Color = (0.0, 0.0, 0.0)
FEATURES_AREA = (0.35, 1.0)  # share of an image that a crop of preset features takes


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a context encoder: images -> shards -> training -> model."""

    source: str | None = None
    """Images (as for jobs/prepare.py) or a prepared dataset; None: sample images."""
    store: str = "store"
    """Folder or s3:// URI for datasets, checkpoints and models; with SQLite also the tracking."""
    preset: Preset = "inpaint"
    """alexnet learns features from 227 px images, as in the paper; features learns better ones from
    128 px images; inpaint fills holes in 128 px images; unet fills any hole in an image of any
    size."""
    strategy: Strategy | None = None
    """Where the holes are; None: central for inpaint, random_region for alexnet, free_form for
    unet, grid_60 (60 % of the cells of a grid) for features."""
    target: Target | None = None
    """What features predicts of a hidden cell: its colours (pixels), its colours less their mean
    over their deviation (normalized), or histograms of its gradients (hog). None: hog."""
    layers: Layers | None = None
    """masked: the encoder of features computes on visible cells alone while it is trained; dense:
    on all, holes painted over. None: masked."""
    encoder: str = ALEXNET
    """Encoder of features: alexnet, resnet18, resnet50, convnextv2_atto and other backbones of
    transformers (docs/features.md has the list), which has to be installed for them."""
    adversarial: float | None = None
    """Weight of the adversarial loss; the reconstruction has the rest. 0 builds no discriminator.
    None: 0.001 for inpaint, 0 for the others."""
    feature_matching: float | None = None
    """Weight of the distance between what the discriminator sees of the filled and of the real
    image; unet with an adversarial loss only. None: 0."""
    reconstruction: Literal["l2", "l1"] | None = None
    """Distance between prediction and image; None: l1 for unet, l2 for the paper's presets."""
    region: Literal["hole", "image"] | None = None
    """Where the reconstruction is scored. None: the hole for alexnet, unet and central holes, the
    whole image for inpaint with random holes, as the reference code does."""
    overlap: int | None = None
    """Ring of known context, px, that a central prediction covers too; None: 4 with central holes
    of inpaint."""
    ring_weight: float | None = None
    """Weight of the ring against the hole; None: 10."""
    fill: tuple[float, float, float] | Literal["smooth", "colour"] | None = None
    """What stands in the hole of the input: its surroundings drawn smoothly into it (smooth), the
    dataset's mean colour (colour), or RGB 0..255. None: smooth for unet, colour for the others.
    The masked layers of features see no hole."""
    norm: Literal["batch", "lrn", "none"] = "batch"
    """Normalisation of alexnet."""
    groups: Literal[1, 2] = 1
    """Groups of conv2, conv4 and conv5 of alexnet and features; 2 in the reference CaffeNet."""
    dropout: float | None = None
    """Dropout after the channel-wise layer of alexnet; None: 0.5."""
    bottleneck: int | None = None
    """Units of the bottleneck of inpaint; None: 4000."""
    steps: int = 2000
    """Training steps: each updates the discriminator, then the generator."""
    batch_size: int = 64
    """Images per step over all workers."""
    learning_rate: float | None = None
    """Of the generator; None: by preset and strategy, as in the paper."""
    discriminator_learning_rate: float | None = None
    """None: a tenth of the generator's; without a reconstruction loss (--adversarial 1) the same,
    as in train.lua."""
    scale_learning_rate: Literal["none", "linear", "sqrt"] = "none"
    """Multiply the preset's learning rates by batch_size / 64, or by its square root."""
    optimizer: Optimizer | None = None
    """Rule of an update of both networks; None: adam, as in the paper; adamw for features."""
    weight_decay: float | None = None
    """Decoupled with adamw, else added to the gradient; biases and norms are never decayed.
    None: 0; 0.05 for features."""
    betas: tuple[float, float] | None = None
    """Of adam and adamw; None: 0.5 0.999; 0.9 0.95 for features."""
    momentum: float | None = None
    """Of sgd and lars; None: 0.9."""
    schedule: Schedule | None = None
    """Learning rate over the steps: constant, half a cosine down to 0, or a tenth at each of
    the milestones. None: constant; cosine for features."""
    milestones: tuple[int, ...] | None = None
    """Steps of schedule step; None: at a third and at two thirds of the steps."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises in a straight line to its full value; None: 0; 5 % of
    the steps for features."""
    clip_norm: float | None = None
    """Largest norm of all gradients of a network; None or 0: not clipped."""
    ema: float | None = None
    """Decay of a moving average of the generator's weights, 0.999 for example, measured beside
    them; None or 0: none."""
    export: Export | None = None
    """Weights of the model that is written, raw or averaged; None: the average where there is
    one."""
    init: str | None = None
    """Weights of the generator to start from: model folder, stage, checkpoint, run id,
    models:/name@alias, a file of a state dict (.safetensors, .pt, .pth, .bin), or hf:FOLDER, which
    transformers wrote."""
    init_map: tuple[str, ...] = ()
    """Renames of its tensors, OLD=NEW, each a prefix of names."""
    seed: int = 0
    """Seed of the weights, the order, the crops, the choice of holes and dropout."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes in it."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    shorter: int | None = None
    """Shorter side to which an image is resized before the random crop, px; 0 keeps the stored
    size. None: 144 for inpaint and unet, 0 for alexnet; features crops by area instead."""
    crop_area: tuple[float, float] | None = None
    """Least and greatest share of an image's area that a random crop takes, which is then resized
    to what the network reads. None: 0.35 1 for features; the others crop without resizing."""
    crop_ratio: tuple[float, float] | None = None
    """Least and greatest width over height of such a crop; None: 3/4 to 4/3."""
    flip: bool = True
    """Mirror half of the training images."""
    window_rows: int = WINDOW_ROWS
    """Images shuffled at once."""
    num_workers: int = 1
    """Training processes, one GPU each where the cluster has GPUs."""
    threads_per_worker: int | None = None
    """CPU threads of a training process; None: the CPUs shared out."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 0
    """Further checkpoints kept: those that filled the validation holes best (PSNR)."""
    log_every: int = 10
    """Steps between two points of a curve; a checkpoint has a point of its own."""
    validate_every: int | None = None
    """Steps between validations and panels; None: as checkpoint_every."""
    validation_images: int = 256
    """Validation images, the first of the split."""
    time_limit_s: float | None = None
    """Seconds after which training ends with a checkpoint of its step, up to 60 s earlier; rerun
    the command to resume."""
    max_failures: int = 3
    """Restarts after the loss of a worker."""
    summary: str | None = None
    """File for a JSON summary of what was measured."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""
    experiment: str = "context-encoder"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more")
        for name in ("learning_rate", "discriminator_learning_rate", "ring_weight", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}; it must be a finite number above 0")
        if self.seed > MAX_SEED:
            raise UserError(f"seed is {self.seed}; it must be {MAX_SEED} or less")
        if self.batch_size % self.num_workers:
            raise UserError(
                f"batch_size is {self.batch_size}; it must be a multiple of num_workers "
                f"{self.num_workers}, so that every worker gets equal steps"
            )
        if self.preset == "inpaint" and self.batch_size // self.num_workers < 2:
            raise UserError(
                f"batch_size is {self.batch_size} for {self.num_workers} workers; preset inpaint "
                "needs at least 2 images per worker, since its bottleneck is batch-normalised"
            )
        recipe = resolve_recipe(self)  # checks network, losses and optimizer
        if self.overlap and recipe.network.output != "center":
            raise UserError(
                f"overlap is {self.overlap} px; it must be 0 with {recipe.strategy} holes of "
                f"{self.preset}, since only the central prediction of inpaint covers a ring"
            )
        if self.feature_matching and self.preset != "unet":
            raise UserError(
                f"feature_matching is {self.feature_matching} with preset {self.preset}; it must "
                "be 0: only the discriminator of preset unet has features to match"
            )
        self._check_features(recipe)
        require_encoder(self.encoder)
        if self.shorter and self.shorter < recipe.side:
            raise UserError(
                f"shorter is {self.shorter} px; it must be 0 or at least {recipe.side}, the side "
                f"of the images that {self.preset} reads"
            )
        if self.learning_rate is not None and self.scale_learning_rate != "none":
            raise UserError(
                f"scale_learning_rate is {self.scale_learning_rate} with learning_rate "
                f"{self.learning_rate}; it scales the preset's own rates: give one of the two"
            )
        if self.init_map and self.init is None:
            raise UserError(f"init_map is {self.init_map} without init, whose tensors it renames")
        self._check_optimization(recipe.optimization)

    def _check_features(self, recipe: "Recipe") -> None:
        """Refuse settings of features and of crops that would be ignored."""
        if self.preset == "features":
            if recipe.objective.adversarial:
                raise UserError(
                    f"adversarial is {self.adversarial}; it must be 0 with preset features, whose "
                    "predictions are no images that a discriminator could judge"
                )
            if self.fill is not None and recipe.network.layers == "masked":
                raise UserError(
                    f"fill is {self.fill}; masked layers see no hole: leave it out, or add "
                    "--layers dense"
                )
        if self.shorter is not None and self.crop_area is not None:
            raise UserError(
                f"shorter is {self.shorter} and crop_area {self.crop_area}; give one: shorter for "
                "crops of fixed size, crop_area for crops that are resized"
            )
        if self.crop_ratio is not None and recipe.crop is None:
            raise UserError(
                f"crop_ratio is {self.crop_ratio}; it needs --crop-area, since other crops are "
                "square"
            )

    def _check_optimization(self, wanted: Optimization) -> None:
        """Refuse settings of the optimizer that would be ignored or cannot work."""
        adaptive = wanted.optimizer in ADAPTIVE
        for name, of in (("betas", adaptive), ("momentum", not adaptive)):
            if getattr(self, name) is not None and not of:
                raise UserError(
                    f"{name} is {getattr(self, name)} with optimizer {wanted.optimizer}, which "
                    "has none: betas belong to adam and adamw, momentum to sgd and lars"
                )
        if self.export is not None and not wanted.ema:
            raise UserError(
                f"export is {self.export}; there is one set of weights unless --ema keeps a moving "
                "average: add --ema 0.999, or leave --export out"
            )
        if wanted.warmup_steps > self.steps:
            raise UserError(
                f"warmup_steps is {wanted.warmup_steps}; it must be at most steps {self.steps}, or "
                "the learning rate would never reach its full value"
            )
        if wanted.milestones and wanted.milestones[-1] >= self.steps:
            raise UserError(
                f"milestones is {wanted.milestones}; the last must be below steps {self.steps}"
            )


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

    @property
    def side(self) -> int:
        """Side of the images the network reads, px."""
        return input_side(self.network)


def resolve_recipe(config: PretrainConfig, mean_rgb: Color = NO_COLOR) -> Recipe:
    """Every setting as it is used: what is given, else the preset's own.

    Args:
        config: the settings as given.
        mean_rgb: mean colour of the dataset, 0 to 255; before there is one, black stands for it.
    """
    strategy = config.strategy or default_strategy(config.preset)
    center = config.preset == "inpaint" and strategy == "central"
    network = NetworkConfig(
        preset=config.preset,
        output="center" if center else "full",
        norm=config.norm,
        groups=config.groups,
        encoder=config.encoder,
        **_given(config, "dropout", "bottleneck", "target", "layers"),
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
    )


def _start(fill: Color | Literal["smooth", "colour"]) -> Literal["smooth", "colour"]:
    return "smooth" if fill == "smooth" else "colour"


def _crop(config: PretrainConfig) -> ResizedCrop | None:
    usual = FEATURES_AREA if config.preset == "features" and config.shorter is None else None
    area = config.crop_area or usual
    if area is None:
        return None
    return ResizedCrop(area=area, ratio=config.crop_ratio or CROP_RATIO)


def _given(config: PretrainConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _learning_rates(
    config: PretrainConfig, network: NetworkConfig, strategy: Strategy, adversarial: float
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


def _optimization(config: PretrainConfig, usual: Optimization) -> Optimization:
    given = _given(config, "optimizer", "weight_decay", "betas", "momentum", "schedule",
                   "milestones", "warmup_steps", "clip_norm", "ema")  # fmt: skip
    if given.get("schedule", usual.schedule) != "step":
        given = {"milestones": (), **given}
    elif not given.get("milestones", usual.milestones):
        given["milestones"] = tuple(sorted({max(1, config.steps * n // 3) for n in (1, 2)}))
    usual = replace(usual, warmup_steps=min(usual.warmup_steps, config.steps // 10))
    return replace(usual, **given)

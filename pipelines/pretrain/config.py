"""Settings of a training run."""

import math
from dataclasses import dataclass
from typing import Literal

from ce_model.masks import Strategy
from ce_model.network_config import ALEXNET, INPAINTING, Layers, Preset, Pretext, Target
from ce_model.training import (
    WITH_BETAS,
    WITH_MOMENTUM,
    Optimization,
    Optimizer,
    Schedule,
    TrainPrecision,
)
from pipelines.data.stream_plan import WINDOW_ROWS
from pipelines.errors import UserError
from pipelines.models.encoder_names import require_encoder
from pipelines.pretrain.recipe import DRAWN, Export, Recipe, resolve_recipe
from pipelines.pretrain.workers import Workers

LEAST = {  # what a setting must be at the least
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "seed": 0,
    "shorter": 0,
    "window_rows": 1,
    "threads_per_worker": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "keep_best": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_images": 1,
    "max_failures": 0,
    "probe_every": 1,
    "probe_images": 1,
    "profile_steps": 0,
    "exemplar_classes": 1,
}
Sink = Literal["mlflow", "tensorboard"]
# Settings of holes and of filling them, which a sibling pretext has not.
OF_HOLES = (
    "strategy", "target", "adversarial", "feature_matching", "reconstruction", "region", "overlap",
    "ring_weight", "fill",
)  # fmt: skip
MAX_SEED = 2**64 - 1  # torch takes no larger one


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
    pretext: Pretext = INPAINTING
    """What features learns from: holes, or a sibling pretext without holes: where a second patch
    lies (relative_position), which image it is (exemplar), how a second view was moved
    (transformation)."""
    exemplar_classes: int | None = None
    """Images that pretext exemplar tells apart, the first of the training split; it trains on these
    alone. None: 8000, or all where there are fewer."""
    strategy: Strategy | None = None
    """Where the holes are; None: central for inpaint, random_region for alexnet, free_form for
    unet, grid_60 (60 % of the cells of a grid) for features."""
    target: Target | None = None
    """What features predicts of a hidden cell: its colours (pixels), its colours less their mean
    over their deviation (normalized), or histograms of its gradients (hog). None: hog."""
    layers: Layers | None = None
    """masked: the encoder of features computes on visible cells alone while it is trained; dense:
    on all, holes painted over. None: masked; dense with a sibling pretext, which has no holes."""
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
    accumulate: int = 1
    """Parts in which a worker takes its share of a batch, one after the other: less memory, the
    same gradient. Batch norm sees the images of one part at a time."""
    learning_rate: float | None = None
    """Of the generator; None: by preset and strategy, as in the paper."""
    discriminator_learning_rate: float | None = None
    """None: a tenth of the generator's; without a reconstruction loss (--adversarial 1) the same,
    as in train.lua."""
    scale_learning_rate: Literal["none", "linear", "sqrt"] = "none"
    """Multiply the preset's learning rates by batch_size / 64, or by its square root."""
    optimizer: Optimizer | None = None
    """Rule of an update of both networks; None: adam, as in the paper; muon for unet and
    features."""
    weight_decay: float | None = None
    """Decoupled with adamw and muon, else added to the gradient; never on biases and norms.
    None: 0; 0.05 for features."""
    betas: tuple[float, float] | None = None
    """Of adam, adamw and muon; None: 0.5 0.999; 0.9 0.95 for features."""
    momentum: float | None = None
    """Of sgd, lars and muon; None: 0.9; 0.95 for muon."""
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
    transformers wrote; random; or kmeans, random but for the first convolution (the first two of
    encoder alexnet), whose filters are centres of patches of training images; presets alexnet and
    features. None: kmeans for features with alexnet, random for the others."""
    init_map: tuple[str, ...] = ()
    """Renames of its tensors, OLD=NEW, each a prefix of names."""
    seed: int = 0
    """Seed of the weights, the order, the crops, the choice of holes and dropout."""
    precision: TrainPrecision = "auto"
    """auto: bf16 where the processor computes in it, else fp32; fp16, with a scaled loss, is for
    CUDA GPUs."""
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
    colour_jitter: tuple[float, float, float, float] | None = None
    """Largest random changes of brightness, contrast, saturation (factors 1 - x to 1 + x) and hue
    (turns of the colour circle, at most 0.5), 0.4 0.4 0.4 0.1 for example. None: none."""
    grey: float = 0.0
    """Share of the training images that become grey."""
    window_rows: int = WINDOW_ROWS
    """Images shuffled at once."""
    cache_folder: str | None = None
    """Folder on each node's own disk that keeps shards of a dataset in a bucket, so that later
    epochs do not read the bucket again. None: none."""
    cache_gb: float | None = None
    """Most bytes kept there on each node, 10^9; a tenth of the disk stays free. None: 100."""
    num_workers: int | str = 1
    """Training processes, one GPU each where the cluster has GPUs. MIN:MAX, as 1:4, begins with
    what is there and follows the cluster as it grows and shrinks."""
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
    stall_timeout_s: float = 300.0
    """Seconds without a sign of life of a worker, or in one step, after which it is restarted."""
    log_to: tuple[Sink, ...] = ("mlflow",)
    """Where curves and panels go: mlflow always, and tensorboard (event files in the stage)."""
    probe_every: int | None = None
    """Steps between probes: Ray tasks on a free CPU that fill the holes of every strategy and ask
    neighbours and a linear map for the class; a multiple of checkpoint_every. None: none."""
    probe_images: int = 256
    """Images of each split that a probe takes."""
    profile_steps: int = 0
    """Steps that the first worker traces, once after each start; the trace is in the stage."""
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
        for name in ("learning_rate", "discriminator_learning_rate", "ring_weight", "time_limit_s",
                     "stall_timeout_s", "cache_gb"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}; it must be a finite number above 0")
        if self.probe_every is not None and self.probe_every % self.checkpoint_every:
            raise UserError(
                f"probe_every is {self.probe_every}; it must be a multiple of checkpoint_every "
                f"{self.checkpoint_every}, since a probe measures a checkpoint"
            )
        if "mlflow" not in self.log_to:
            raise UserError(
                f"log_to is {self.log_to}; it must have mlflow, which keeps what a model was made "
                "from: --log-to mlflow tensorboard writes event files, too"
            )
        self._check_cache()
        if self.seed > MAX_SEED:
            raise UserError(f"seed is {self.seed}; it must be {MAX_SEED} or less")
        self._check_batch()
        self._check_pretext()
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
        self._check_init()
        self._check_optimization(recipe.optimization)

    @property
    def workers(self) -> Workers:
        """The fewest and the most training processes."""
        return Workers.parse(self.num_workers)

    def _check_cache(self) -> None:
        """Refuse a folder that is not the same on every node, and a limit of nothing."""
        folder = self.cache_folder
        if folder is None and self.cache_gb is not None:
            raise UserError(
                f"cache_gb is {self.cache_gb} without cache_folder; add --cache-folder FOLDER, on "
                "a disk of the nodes, or leave it out"
            )
        if folder is not None and not folder.startswith(("/", "~")):
            raise UserError(
                f"cache_folder is '{folder}'; it must be an absolute path of a folder on the "
                "nodes' own disks, /local/cache for example"
            )

    def _check_init(self) -> None:
        """Refuse renames of no tensors, and filters for a preset that has none."""
        if self.init_map and self.init in (None, *DRAWN):
            raise UserError(
                f"init_map is {self.init_map} with init {self.init}; it renames tensors of weights "
                "that exist: name them with --init, or leave it out"
            )
        if self.init == "kmeans" and self.preset not in ("alexnet", "features"):
            raise UserError(
                f"init is kmeans with preset {self.preset}; filters are drawn for presets alexnet "
                "and features: leave it out"
            )

    def _check_batch(self) -> None:
        """Refuse a batch that cannot be shared out."""
        for workers in dict.fromkeys(self.workers):
            shares = workers * self.accumulate
            if self.batch_size % shares:
                parts = f" x accumulate {self.accumulate} = {shares}" if self.accumulate > 1 else ""
                raise UserError(
                    f"batch_size is {self.batch_size}; it must be a multiple of num_workers "
                    f"{workers}{parts}, so that every worker gets equal steps"
                )
            if self.preset == "inpaint" and self.batch_size // shares < 2:
                taken = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
                raise UserError(
                    f"batch_size is {self.batch_size} for {workers} workers{taken}; preset "
                    "inpaint needs at least 2 images per worker and part, since its bottleneck is "
                    "batch-normalised"
                )

    def _check_pretext(self) -> None:
        """Refuse a sibling pretext with another preset or with settings of holes."""
        if self.exemplar_classes is not None and self.pretext != "exemplar":
            raise UserError(
                f"exemplar_classes is {self.exemplar_classes} with pretext {self.pretext}; it "
                "belongs to --pretext exemplar: leave it out"
            )
        if self.pretext == INPAINTING:
            return
        if self.preset != "features":
            raise UserError(
                f"pretext is {self.pretext} with preset {self.preset}; sibling pretexts train the "
                "encoder of preset features: add --preset features"
            )
        given = [name for name in OF_HOLES if getattr(self, name) not in (None, 0)]
        if self.layers == "masked":
            given.append("layers")
        if given:
            values = ", ".join(f"{name} {getattr(self, name)}" for name in given)
            raise UserError(
                f"pretext is {self.pretext} with {values}; this pretext hides and fills nothing, "
                f"and its layers are dense: leave {', '.join(given)} out, or train --pretext "
                "inpainting"
            )
        if self.exemplar_classes is not None and self.exemplar_classes < self.batch_size:
            raise UserError(
                f"exemplar_classes is {self.exemplar_classes}; it must be at least batch_size "
                f"{self.batch_size}, since only these images are trained on"
            )

    def _check_features(self, recipe: Recipe) -> None:
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
        for name, users in (("betas", WITH_BETAS), ("momentum", WITH_MOMENTUM)):
            if getattr(self, name) is not None and wanted.optimizer not in users:
                raise UserError(
                    f"{name} is {getattr(self, name)} with optimizer {wanted.optimizer}, which "
                    f"has none: betas belong to {', '.join(WITH_BETAS)}, momentum to "
                    f"{', '.join(WITH_MOMENTUM)}"
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

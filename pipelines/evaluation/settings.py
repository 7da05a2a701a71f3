"""The tasks of an evaluation: their names, the data they want, and their settings.

Apart from the tasks themselves and without torch, so that settings are read, checked and explained
(`--help`) in a moment.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from ce_model.masks import Strategy

TaskName = Literal[
    "inpainting", "linear", "knn", "finetune", "detection", "segmentation", "retrieval"
]
Layout = Literal["prepared", "classes", "images", "voc", "camvid"]
Baseline = Literal[
    "mean colour", "Telea", "Navier-Stokes", "biharmonic", "shift-map (patches)", "FSR"
]

LAYOUTS: dict[TaskName, tuple[Layout, ...]] = {
    "inpainting": ("prepared", "classes", "images"),
    "linear": ("prepared", "classes"),
    "knn": ("prepared", "classes"),
    "finetune": ("prepared", "classes", "voc"),
    "detection": ("voc",),
    "segmentation": ("voc", "camvid"),
    "retrieval": ("prepared", "classes"),
}
"""Data that each task can use."""

PAPER_STRATEGIES: tuple[Strategy, ...] = (
    "central", "random_block", "random_region", "random_region_shapes",
)  # fmt: skip
VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor".split()
)
SMALLEST_SIDE = 67  # px of which alexnet's pool5 still makes one cell


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings:
    """Filling holes."""

    RENAMED_FLAGS: ClassVar = {"pictures": "images"}

    strategies: tuple[Strategy, ...] = PAPER_STRATEGIES
    """Holes to fill; a model with a centre output is measured on central ones only. free_form is
    measured where it is named."""
    images: int = 200
    """Maximum number of validation images; 0: all."""
    database: int = 2000
    """Maximum number of training images to copy from in nearest-neighbour inpainting; 0: all."""
    baselines: tuple[Baseline, ...] = ("mean colour", "Telea", "Navier-Stokes", "biharmonic")
    """Classical ways to fill. Shift-map and FSR, which take seconds per image, where named."""
    panel: int = 6
    """Images shown side by side in the report."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        for name in ("images", "database", "panel"):
            if getattr(self, name) < 0:
                raise ValueError(f"inpainting.{name} is {getattr(self, name)}; it must be >= 0")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Probes on frozen features."""

    RENAMED_FLAGS: ClassVar = {"train_pictures": "train_images", "test_pictures": "test_images"}

    values: int = 2400
    """Values per image and layer after pooling."""
    k: int = 20
    """Neighbours that vote."""
    label_shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Shares of the training labels the linear probe may see."""
    train_images: int = 0
    """Maximum number of training images; 0: all."""
    test_images: int = 0
    """Maximum number of test images; 0: all."""
    batch_norm: Literal["calibrated", "trained"] = "calibrated"
    """Statistics of batch norm: of 256 training images of the data, whole and unlabelled, or as
    training left them (images with holes; mean 0 and variance 1 for the random rows)."""
    side: int | None = None
    """Side to which the images are brought, px; None: that of the network. Not for preset
    inpaint."""

    def __post_init__(self) -> None:
        """Refuse empty probes."""
        check_shares("frozen.label_shares", self.label_shares)
        if self.k < 1 or self.values < 1:
            raise ValueError(
                f"frozen.k is {self.k} and frozen.values {self.values}; both must be 1 or more"
            )
        if self.side is not None and self.side < SMALLEST_SIDE:
            raise ValueError(
                f"frozen.side is {self.side} px; it must be {SMALLEST_SIDE} or more, or there is "
                "nothing left for pool5"
            )


@dataclass(frozen=True, kw_only=True)
class HeadTrainingSettings:
    """How a network with a fresh head is trained."""

    steps: int = 1000
    """Training steps."""
    batch_size: int = 32
    """Images per step."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Rates to choose from; a single one is taken without a trial."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; sgd has momentum 0.9 and twice the rate for biases, as in Caffe."""
    weight_decay: float = 1e-4
    """Weight decay."""
    clip: float = 10.0
    """Largest norm of the gradient."""
    decay_every: int = 0
    """Steps after which the rate is multiplied by `decay`; 0: a cosine to zero instead."""
    decay: float = 0.5
    """Factor at each decay."""
    width: int = 1024
    """Units of fc6 and fc7; 4096 in AlexNet."""
    dropout: float = 0.5
    """Dropout after fc6 and fc7."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name in ("steps", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates is {self.learning_rates}; all must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be 0 or more and below 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning for classification."""

    RENAMED_FLAGS: ClassVar = {"test_pictures": "test_images"}

    tuning: HeadTrainingSettings = field(default_factory=HeadTrainingSettings)
    """The training."""
    label_shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Shares of the training labels that are used."""
    labels: int = 0
    """Maximum number of training images, before the shares are taken; 0: all."""
    test_images: int = 0
    """Maximum number of test images; 0: all."""
    scale: tuple[float, float] = (1.0, 1.3)
    """Range of the random size: shorter side over the side of the crop (class folders), or over
    the image's own shorter side (VOC)."""
    crops: int = 1
    """Crops per test image whose scores are averaged; 1 takes the centre."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check_shares("finetune.label_shares", self.label_shares)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"finetune.scale is {self.scale}; it must be two rising sizes above 0")
        if self.crops < 1:
            raise ValueError(f"finetune.crops is {self.crops}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """Object detection."""

    tuning: HeadTrainingSettings = field(
        default_factory=lambda: HeadTrainingSettings(steps=4000, batch_size=2, width=1024)
    )
    """The training."""
    shorter: int = 600
    """Shorter side of the images, px."""
    longer: int = 1000
    """Longer side at most, px."""
    regions: int = 64
    """Regions per image and step, a quarter of them objects."""
    flip: bool = True
    """Mirror half of the training images."""
    shown: int = 4
    """Test images shown in the report."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.shorter < 64 or self.longer < self.shorter or self.regions < 4:
            raise ValueError(
                f"detection.shorter is {self.shorter} px, detection.longer {self.longer} px, "
                f"detection.regions {self.regions}; they must be 64 or more, not below shorter, "
                "and 4 or more"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """Semantic segmentation."""

    tuning: HeadTrainingSettings = field(
        default_factory=lambda: HeadTrainingSettings(steps=2000, batch_size=8, width=1024)
    )
    """The training."""
    train: str = "train"
    """Split to train on."""
    test: str = "val"
    """Split to score; for CamVid also "test"."""
    side: int = 384
    """Images whose longer side is larger are made smaller, px; scores are at full size."""
    flip: bool = True
    """Mirror half of the training images."""
    shown: int = 4
    """Test images shown in the report."""

    def __post_init__(self) -> None:
        """Refuse sizes below one cell of pool5."""
        if self.side < 32:
            raise ValueError(f"segmentation.side is {self.side} px; it must be 32 or more")


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Nearest neighbours of contexts."""

    queries: int = 200
    """Maximum number of validation images."""
    database: int = 2000
    """Maximum number of training images; 0: all."""
    shown: int = 8
    """Queries on the contact sheet."""

    def __post_init__(self) -> None:
        """Refuse an empty measurement."""
        if self.queries < 1 or self.database < 0 or self.shown < 0:
            raise ValueError(
                f"retrieval.queries is {self.queries}, retrieval.database {self.database}, "
                f"retrieval.shown {self.shown}; queries must be 1 or more, the others 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class VocSettings:
    """How VOC folders are read for detection and for several labels per image."""

    classes: tuple[str, ...] = VOC_CLASSES
    """Names of the classes in the annotations."""
    train: str = "trainval"
    """Split to train on (ImageSets/Main); VOC 2012 has train."""
    test: str = "test"
    """Split to score; VOC 2012 has val."""


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Training of the rows `autoencoder` and `supervised`: give them the budget of the others."""

    steps: int = 2000
    """Training steps."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 1e-4
    """Of Adam; 1e-4 is that of `alexnet` with random holes."""
    shorter: int = 0
    """Shorter side before the random crop, px; 0 keeps the stored size."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.steps < 1 or self.batch_size < 2 or self.learning_rate <= 0:
            raise ValueError(
                f"baseline.steps is {self.steps}, baseline.batch_size {self.batch_size}, "
                f"baseline.learning_rate {self.learning_rate}; they must be at least 1, at least 2 "
                "and above 0"
            )


def percent(share: float) -> str:
    """Name of a share of the labels: 100%, 10%, 0.6%."""
    return f"{100 * share:.4g}%"


def check_shares(name: str, shares: tuple[float, ...]) -> None:
    """Refuse shares that are none, and two of one name: they would pass for repetitions."""
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"{name} is {shares}; each must be above 0 and at most 1")
    if len({percent(share) for share in shares}) < len(shares):
        raise ValueError(f"{name} is {shares}; each must occur once, in 4 digits of a percentage")


def settings_in_key(settings: Any) -> dict[str, Any]:
    """Settings of a task as results hold them and keys are made of them.

    A field that was renamed has its former name there: what was measured before is found again and
    compares with what is measured today.
    """
    former = {new: old for old, new in getattr(settings, "RENAMED_FLAGS", {}).items()}
    return {former.get(name, name): value for name, value in asdict(settings).items()}


assert tuple(LAYOUTS) == get_args(TaskName)

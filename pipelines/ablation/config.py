"""Settings of a sweep, and its cells."""

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from ce_model.masks import Strategy
from ce_model.network_config import INPAINTING, Layers, Pretext, Target
from ce_model.training import Precision, default_strategy
from pipelines.evaluation.settings import (
    FinetuneSettings,
    InpaintingSettings,
    ProbeSettings,
    RetrievalSettings,
    TaskName,
)
from pipelines.pretrain.config import PretrainConfig

# Set per cell or for the whole sweep; setting them under --pretrain would be ignored.
NOT_UNDER_PRETRAIN = {
    "strategy": "--strategies",
    "adversarial": "--adversarial",
    "pretext": "--pretexts",
    "seed": "--seeds",
    "source": "--source",
    "store": "--store",
    "tracking_uri": "--tracking-uri",
    "experiment": "--experiment",
    "summary": "--store, where each cell has its commit.json",
}
DEFAULT_METRIC = {
    "alexnet": "linear/pool5/100%/accuracy",
    "features": "linear/pool5/100%/accuracy",
    "inpaint": "inpainting/central/hole/128/L2",
    "unet": "inpainting/central/hole/128/L2",
}


class Arm(NamedTuple):
    """What is compared: all its cells differ in the seed alone."""

    strategy: Strategy
    adversarial: float
    target: Target | None = None
    layers: Layers | None = None
    pretext: Pretext = INPAINTING
    """A sibling pretext has none of the others."""

    def __str__(self) -> str:
        """Its name in tables."""
        if self.pretext != INPAINTING:
            return self.pretext
        given = (f"{self.adversarial:g}", self.target, self.layers)
        return "-".join([self.strategy, *(name for name in given if name is not None)])


class Cell(NamedTuple):
    """One training with its evaluation."""

    arm: Arm
    seed: int
    steps: int

    def __str__(self) -> str:
        """Its name, unique in a sweep."""
        return f"{self.arm} seed {self.seed}, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Compare mask strategies, losses and targets: every cell is a training and its evaluation."""

    strategies: tuple[Strategy, ...] = ("central", "random_block", "random_region")
    """Families of masks to compare."""
    adversarial: tuple[float, ...] = (0.0,)
    """Weights of the adversarial loss to compare; 0 trains without a discriminator."""
    targets: tuple[Target, ...] = ()
    """Targets of preset features to compare; none: that of --pretrain."""
    layers: tuple[Layers, ...] = ()
    """Layers of preset features to compare, masked and dense; none: those of --pretrain."""
    pretexts: tuple[Pretext, ...] = (INPAINTING,)
    """What preset features learns from: inpainting with each of the holes, losses, targets and
    layers above, and each sibling pretext once."""
    seeds: int = 3
    """Every arm is trained with the seeds 0, 1, ... of this number."""
    source: str | None = None
    """Images or a prepared dataset; None: sample images."""
    store: str = "store"
    """Folder or s3:// URI for everything; with SQLite also the tracking."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Common to all cells."""
    tasks: tuple[TaskName, ...] = ("inpainting", "linear")
    """What is measured of every model."""
    precision: Precision | None = None
    """Precision of the measurements; None: that of the trainings."""
    data: tuple[str, ...] = ()
    """Further data for the tasks, beside the dataset that is trained on."""
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    """Task inpainting: the same holes for every cell."""
    frozen: ProbeSettings = field(default_factory=ProbeSettings)
    """Tasks linear and knn."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    """Task finetune."""
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    """Task retrieval."""
    metric: str | None = None
    """Score that the verdict is about, by its name in the report. None: the linear probe on pool5
    for alexnet, L2 in the central hole for inpaint."""
    rungs: tuple[int, ...] = ()
    """Successive halving: after each of these numbers of steps only the better half of the arms
    continues. The verdict compares only arms of the full number of steps."""
    concurrency: int = 0
    """Cells at once; 0: as many as the cluster has room for."""
    attempts: int = 2
    """How often a crashing cell is started in all."""
    tick: str | None = None
    """Name of a schedule: one sweep per period, never two at a time."""
    every_hours: float = 24.0
    """Period of the schedule."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""
    experiment: str = "context-encoder"
    """MLflow experiment."""

    HIDDEN_FLAGS: ClassVar[tuple[str, ...]] = tuple(
        f"pretrain.{name}" for name in NOT_UNDER_PRETRAIN
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        for name in ("strategies", "adversarial", "tasks", "targets", "layers", "pretexts"):
            values = getattr(self, name)
            needed = name not in ("targets", "layers")
            if (needed and not values) or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; give at least one value, each once")
        for name in ("seeds", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.concurrency < 0:
            raise ValueError(f"concurrency is {self.concurrency}; it must be 0 or more")
        if not 0 < self.every_hours < math.inf:
            raise ValueError(f"every_hours is {self.every_hours}; it must be above 0 and finite")
        usual = PretrainConfig()
        for name, flag in NOT_UNDER_PRETRAIN.items():
            if getattr(self.pretrain, name) != getattr(usual, name):
                raise ValueError(
                    f"pretrain.{name} is {getattr(self.pretrain, name)}; a sweep sets it for its "
                    f"cells: use {flag}"
                )
        for swept, name in ((self.targets, "target"), (self.layers, "layers")):
            if swept and getattr(self.pretrain, name) is not None:
                raise ValueError(
                    f"pretrain.{name} is {getattr(self.pretrain, name)}, and the sweep compares "
                    f"{', '.join(swept)}: leave one of them out"
                )
        if INPAINTING not in self.pretexts and (self.targets or self.layers):
            raise ValueError(
                f"pretexts is {', '.join(self.pretexts)}, without inpainting, whose targets and "
                "layers the sweep compares: add inpainting, or leave targets and layers out"
            )
        if list(self.rungs) != sorted({*self.rungs}) or any(
            not 0 < rung < self.pretrain.steps for rung in self.rungs
        ):
            raise ValueError(
                f"rungs is {self.rungs}; they must rise, from 1 to less than pretrain.steps "
                f"{self.pretrain.steps}"
            )
        for arm in arms(self):
            pretraining(self, Cell(arm, 0, self.pretrain.steps))

    @property
    def verdict_metric(self) -> str:
        """The score with its default resolved."""
        return self.metric or DEFAULT_METRIC[self.pretrain.preset]


def arms(config: AblateConfig) -> list[Arm]:
    """Every strategy with every loss, target and kind of layers; each sibling pretext."""
    choices = itertools.product(
        config.strategies, config.adversarial, config.targets or (None,), config.layers or (None,)
    )
    of_holes = [Arm(*choice) for choice in choices] if INPAINTING in config.pretexts else []
    carried = default_strategy("features")
    siblings = [Arm(carried, 0.0, pretext=p) for p in config.pretexts if p != INPAINTING]
    return of_holes + siblings


def cells(config: AblateConfig, chosen: list[Arm], steps: int) -> list[Cell]:
    """All trainings of some arms."""
    return [Cell(arm, seed, steps) for arm in chosen for seed in range(config.seeds)]


def pretraining(config: AblateConfig, cell: Cell) -> PretrainConfig:
    """How a cell is trained."""
    arm, has_holes = cell.arm, cell.arm.pretext == INPAINTING
    return replace(
        config.pretrain,
        pretext=arm.pretext,
        strategy=arm.strategy if has_holes else None,
        adversarial=arm.adversarial if has_holes else None,
        target=arm.target or config.pretrain.target if has_holes else None,
        layers=arm.layers or config.pretrain.layers if has_holes else None,
        seed=cell.seed,
        steps=cell.steps,
        source=config.source,
        store=config.store,
        tracking_uri=config.tracking_uri,
        experiment=config.experiment,
    )

"""Settings of a workflow."""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from pipelines.errors import UserError
from pipelines.evaluation.settings import LAYOUTS, InpaintingSettings, TaskName
from pipelines.pretrain.config import PretrainConfig
from pipelines.tracking.names import require_name

COMMON = ("source", "store", "tracking_uri", "experiment", "summary")
StageName = Literal["prepare", "pretrain", "evaluate", "promote"]


@dataclass(frozen=True, kw_only=True)
class WorkflowConfig:
    """From images to a champion; a rerun does only what is missing."""

    source: str | None = None
    """Images or a prepared dataset; None: sample images."""
    store: str = "store"
    """Folder or s3:// URI for everything; with SQLite also the tracking."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """The training."""
    tasks: tuple[TaskName, ...] = ("inpainting", "linear")
    """What is measured of the model, each a stage."""
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    """Task inpainting."""
    gates: str | None = None
    """YAML file of what is demanded; None: the gates.yaml that comes with the package."""
    name: str = "context-encoder"
    """Registered model."""
    plan: bool = False
    """Print what would run, and why, and run nothing."""
    until: StageName = "promote"
    """Last stage to run."""
    attempts: int = 2
    """How often a crashing stage is started in all."""
    tracking_uri: str | None = None
    """MLflow server; None: MLFLOW_TRACKING_URI, else SQLite in the store."""
    experiment: str = "context-encoder"
    """MLflow experiment."""

    HIDDEN_FLAGS: ClassVar[tuple[str, ...]] = tuple(f"pretrain.{name}" for name in COMMON)

    def __post_init__(self) -> None:
        """Refuse what would be ignored."""
        for name in COMMON:
            if getattr(self.pretrain, name) != getattr(PretrainConfig(), name):
                raise ValueError(
                    f"pretrain.{name} is {getattr(self.pretrain, name)}; the workflow sets it for "
                    f"all stages: use --{name.replace('_', '-')}"
                )
        require_name(self.name)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks is {self.tasks}; give at least one, each once")
        for task in self.tasks:
            if "prepared" not in LAYOUTS[task]:
                raise UserError(
                    f"tasks is {self.tasks}; {task} needs one of "
                    f"{', '.join(LAYOUTS[task])}, and the workflow measures on the "
                    "prepared dataset of the training: use jobs/evaluate.py"
                )
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; it must be 1 or more")


assert {each.name for each in fields(PretrainConfig)} >= set(COMMON)

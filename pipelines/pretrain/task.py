"""What a training worker gets: plain values that can be sent."""

from dataclasses import dataclass

from ce_model.training import Precision
from pipelines.data.stream_plan import StreamPlan
from pipelines.pretrain.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training process has to know."""

    plan: StreamPlan
    stage_uri: str
    recipe: Recipe
    precision: Precision
    compile: bool
    threads: int | None
    checkpoint_every: int
    keep_checkpoints: int
    keep_best: int
    has_initial: bool
    """Whether the stage holds weights to start from."""
    log_every: int
    validate_every: int
    validation_images: int

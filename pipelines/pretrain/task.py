"""What a training worker gets: plain values that can be sent."""

from dataclasses import dataclass, replace

from ce_model.training import TrainPrecision
from pipelines.data.stream_plan import StreamPlan
from pipelines.pretrain.recipe import Recipe
from pipelines.pretrain.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training process has to know."""

    plan: StreamPlan
    """As for the most workers; `for_workers` gives that of a group."""
    workers: Workers
    stage_uri: str
    recipe: Recipe
    precision: TrainPrecision
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
    profile_steps: int
    probe_images: int

    def for_workers(self, count: int) -> "Task":
        """The same training, shared out among so many; batches and their order stay."""
        return replace(self, plan=replace(self.plan, num_workers=count))

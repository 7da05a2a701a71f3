"""What a training worker is told: plain values that can be sent."""

from dataclasses import dataclass

from ce_model.networks import NetworkConfig
from ce_model.training import Objective, Optimization, Precision
from pipelines.data.stream_plan import StreamPlan


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training process has to know."""

    plan: StreamPlan
    stage_uri: str
    network: NetworkConfig
    objective: Objective
    learning_rates: tuple[float, float]
    optimization: Optimization
    precision: Precision
    compile: bool
    threads: int | None
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int
    validate_every: int
    validation_images: int

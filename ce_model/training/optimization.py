"""How the weights move: optimizer, weight decay, learning rate over the steps, clipping, average.

These are the settings, without torch; `optimizers` and `weight_average` act on them.
"""

import math
from dataclasses import dataclass
from typing import Literal

Optimizer = Literal["adam", "adamw", "sgd", "lars", "muon"]
Schedule = Literal["constant", "cosine", "step"]
WITH_BETAS: tuple[Optimizer, ...] = ("adam", "adamw", "muon")
WITH_MOMENTUM: tuple[Optimizer, ...] = ("sgd", "lars", "muon")
ADAM_BETAS = (0.5, 0.999)  # train.lua
MUON_MOMENTUM = 0.95  # of its authors
STEP_FACTOR = 0.1  # of the learning rate, at each milestone


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How both networks are updated; the defaults are those of the paper's code."""

    optimizer: Optimizer = "adam"
    """Rule of an update."""
    betas: tuple[float, float] = ADAM_BETAS
    """Decay of Adam's means of the gradient and of its square; muon has it in some layers."""
    momentum: float = 0.9
    """Of sgd, lars and muon."""
    weight_decay: float = 0.0
    """Decoupled in adamw and muon, else added to the gradient; never on biases and norms."""
    schedule: Schedule = "constant"
    """Learning rate over the steps: constant, half a cosine to 0, or a tenth at each milestone."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises to its full value, in a straight line."""
    milestones: tuple[int, ...] = ()
    """Steps from which schedule `step` multiplies the rate by 0.1."""
    clip_norm: float = 0.0
    """Largest norm of all gradients of one network; 0 clips nothing."""
    ema: float = 0.0
    """Decay of the moving average of the generator's weights; 0 keeps none."""
    accumulate: int = 1
    """Parts in which a batch is taken, one after the other, before the weights move."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]),
                            ("momentum", self.momentum), ("ema", self.ema)):  # fmt: skip
            if not 0 <= value < 1:
                raise ValueError(f"optimization.{name} is {value}; it must be from 0 to below 1")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"optimization.{name} is {value}; it must be 0 or more and finite")
        if self.accumulate < 1:
            raise ValueError(f"optimization.accumulate is {self.accumulate}; it must be 1 or more")
        if self.warmup_steps < 0:
            raise ValueError(
                f"optimization.warmup_steps is {self.warmup_steps}; it must be 0 or more"
            )
        if (
            list(self.milestones) != sorted(set(self.milestones))
            or min(self.milestones, default=1) < 1
        ):
            raise ValueError(
                f"optimization.milestones is {self.milestones}; they must be rising steps above 0"
            )
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                f"optimization.schedule is {self.schedule} with milestones {self.milestones}; "
                "schedule step needs milestones, and no other schedule has them"
            )

    @property
    def is_moving(self) -> bool:
        """Whether the learning rate changes from step to step."""
        return self.schedule != "constant" or self.warmup_steps > 0


def rate_factor(optimization: Optimization, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its full value.

    Args:
        optimization: schedule, warm-up and milestones.
        step: number of the step, from 0.
        steps: length of the run.
    """
    if step < optimization.warmup_steps:
        return (step + 1) / optimization.warmup_steps
    if optimization.schedule == "cosine":
        length = max(1, steps - optimization.warmup_steps)
        return (1 + math.cos(math.pi * (step - optimization.warmup_steps) / length)) / 2
    return float(STEP_FACTOR ** sum(step >= milestone for milestone in optimization.milestones))

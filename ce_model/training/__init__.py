"""One training step of a context encoder, what it needs, and the state that a resumed run needs."""

from ce_model.training.distributed import ddp_settings, num_ranks, unwrap
from ce_model.training.inference import (
    STATISTICS_BATCH,
    STATISTICS_PICTURES,
    Prediction,
    dropout_shifts_statistics,
    estimate_statistics,
    fill,
    predict,
)
from ce_model.training.objective import (
    IMAGENET_MEAN,
    LearningRates,
    Objective,
    default_learning_rates,
    default_objective,
    default_optimization,
    default_shorter,
    default_strategy,
    discriminator_rate,
)
from ce_model.training.optimization import (
    ADAM_BETAS,
    ADAPTIVE,
    Optimization,
    Optimizer,
    Schedule,
    WeightAverage,
    rate_factor,
)
from ce_model.training.precision import Precision, resolve_precision
from ce_model.training.state import load_state_tensors, state_tensors
from ce_model.training.step import (
    Networks,
    Optimizers,
    make_optimizers,
    set_learning_rates,
    train_step,
)
from ce_model.training.views import Views, make_views

__all__ = [
    "ADAM_BETAS",
    "ADAPTIVE",
    "IMAGENET_MEAN",
    "STATISTICS_BATCH",
    "STATISTICS_PICTURES",
    "LearningRates",
    "Networks",
    "Objective",
    "Optimization",
    "Optimizer",
    "Optimizers",
    "Precision",
    "Prediction",
    "Schedule",
    "Views",
    "WeightAverage",
    "ddp_settings",
    "default_learning_rates",
    "default_objective",
    "default_optimization",
    "default_shorter",
    "default_strategy",
    "discriminator_rate",
    "dropout_shifts_statistics",
    "estimate_statistics",
    "fill",
    "load_state_tensors",
    "make_optimizers",
    "make_views",
    "num_ranks",
    "predict",
    "rate_factor",
    "resolve_precision",
    "set_learning_rates",
    "state_tensors",
    "train_step",
    "unwrap",
]

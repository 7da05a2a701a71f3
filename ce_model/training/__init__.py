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
    discriminator_rate,
)
from ce_model.training.precision import Precision, resolve_precision
from ce_model.training.state import load_state_tensors, state_tensors
from ce_model.training.step import ADAM_BETAS, Networks, Optimizers, make_optimizers, train_step
from ce_model.training.views import Views, make_views

__all__ = [
    "ADAM_BETAS",
    "IMAGENET_MEAN",
    "STATISTICS_BATCH",
    "STATISTICS_PICTURES",
    "LearningRates",
    "Networks",
    "Objective",
    "Optimizers",
    "Precision",
    "Prediction",
    "Views",
    "ddp_settings",
    "default_learning_rates",
    "default_objective",
    "discriminator_rate",
    "dropout_shifts_statistics",
    "estimate_statistics",
    "fill",
    "load_state_tensors",
    "make_optimizers",
    "make_views",
    "num_ranks",
    "predict",
    "resolve_precision",
    "state_tensors",
    "train_step",
    "unwrap",
]

"""One training step of a context encoder, what it needs, and the state that a resumed run needs.

A name is imported when it is first used: the settings (Objective, Optimization) need no torch, and
whoever only reads or explains them does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ce_model.choices import Precision, TrainPrecision
    from ce_model.training.distributed import ddp_settings, num_ranks, unwrap
    from ce_model.training.inference import (
        STATISTICS_BATCH,
        STATISTICS_IMAGES,
        Answers,
        CellPrediction,
        Computation,
        Prediction,
        answer,
        dropout_shifts_statistics,
        estimate_statistics,
        fill,
        predict,
        predict_cells,
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
        MUON_MOMENTUM,
        WITH_BETAS,
        WITH_MOMENTUM,
        Optimization,
        Optimizer,
        Schedule,
        rate_factor,
    )
    from ce_model.training.precision import resolve_precision
    from ce_model.training.state import load_state_tensors, state_tensors
    from ce_model.training.step import (
        Networks,
        Optimizers,
        make_optimizers,
        set_learning_rates,
        train_step,
    )
    from ce_model.training.sync_norm import synchronise_norms
    from ce_model.training.views import Views, make_views
    from ce_model.training.weight_average import WeightAverage

__all__ = [
    "ADAM_BETAS",
    "IMAGENET_MEAN",
    "MUON_MOMENTUM",
    "STATISTICS_BATCH",
    "STATISTICS_IMAGES",
    "WITH_BETAS",
    "WITH_MOMENTUM",
    "Answers",
    "CellPrediction",
    "Computation",
    "LearningRates",
    "Networks",
    "Objective",
    "Optimization",
    "Optimizer",
    "Optimizers",
    "Precision",
    "Prediction",
    "Schedule",
    "TrainPrecision",
    "Views",
    "WeightAverage",
    "answer",
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
    "predict_cells",
    "rate_factor",
    "resolve_precision",
    "set_learning_rates",
    "state_tensors",
    "synchronise_norms",
    "train_step",
    "unwrap",
]
# Where the names are looked for; the files that need no torch come first.
_HOMES = (
    "ce_model.choices",
    "ce_model.training.optimization",
    "ce_model.training.objective",
    "ce_model.training.precision",
    "ce_model.training.distributed",
    "ce_model.training.views",
    "ce_model.training.state",
    "ce_model.training.weight_average",
    "ce_model.training.inference",
    "ce_model.training.step",
    "ce_model.training.sync_norm",
)


def __getattr__(name: str) -> Any:
    """A public name from the file that defines it (PEP 562)."""
    for home in _HOMES if name in __all__ else ():
        found = vars(import_module(home)).get(name)
        if found is not None:
            return found
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

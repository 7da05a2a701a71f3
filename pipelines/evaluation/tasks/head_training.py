"""Training a network with a fresh head: the same loop and the same choice of rate for every row.

The learning rate is chosen for each model by one rule, because weights of different origin want
different ones: every rate is tried on four fifths of the training split, the best score on the rest
wins (of equals the smaller), and the network is trained once more on the whole split.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.evaluation.settings import HeadTrainingSettings
from pipelines.evaluation.task import Tell, silent

Model = TypeVar("Model", bound=nn.Module)

HELD_OUT = 5  # one part in so many decides on the learning rate


class Choice(NamedTuple):
    """A learning rate and why it was taken."""

    learning_rate: float
    tried: dict[str, float | None]
    """Score on the held-out part by rate; None where training was not finite."""


def choose_rate(rates: Sequence[float], score_of: Callable[[float], float]) -> Choice:
    """The rate with the best held-out score; of equals the smaller.

    Raises:
        UserError: training was finite with none of them.
    """
    if len(rates) == 1:
        return Choice(rates[0], {})
    scores = {rate: score_of(rate) for rate in sorted(rates)}
    finite = {rate: score for rate, score in scores.items() if math.isfinite(score)}
    if not finite:
        raise UserError(
            f"learning_rates is {tuple(rates)}; training was finite with none of them: add a "
            "smaller one"
        )
    best = max(finite, key=lambda rate: finite[rate])
    return Choice(best, {f"{rate:g}": finite.get(rate) for rate in scores})


def fit_at_best_rate(
    fit: Callable[[NDArray[np.int64], float], Model | None],
    score_of: Callable[[Model, NDArray[np.int64]], float],
    rates: Sequence[float],
    count: int,
    seed: int,
) -> tuple[Model | None, Choice]:
    """Choose the learning rate on a part that is held out, then train on everything.

    Args:
        fit: trains on examples, by number, at a rate; None where a loss was not finite.
        score_of: how well a model does on examples, by number; more is better.
        rates: to choose from.
        count: of examples.
        seed: of what is held out.

    Raises:
        UserError: training was finite at none of the rates.
    """
    to_fit, held = split_off(count, seed)

    def score_at(rate: float) -> float:
        model = fit(to_fit, rate)
        return math.nan if model is None else score_of(model, held)

    choice = choose_rate(rates, score_at)
    return fit(np.arange(count), choice.learning_rate), choice


def split_off(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers below `count` as a part to train on and a part that decides on the rate."""
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    held = max(1, count // HELD_OUT)
    return np.sort(order[held:]), np.sort(order[:held])


def optimise(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    settings: HeadTrainingSettings,
    *,
    learning_rate: float,
    seed: int,
    tell: Tell = silent,
) -> bool:
    """Train; returns whether every loss was finite, and stops before the first that was not.

    Args:
        model: changed in place, left in eval mode.
        loss_of: the loss of a step's batch, from the number of the step.
        settings: steps, optimizer and schedule.
        learning_rate: at the start.
        seed: of dropout.
        tell: hears of every step.
    """
    optimizer = _optimizer(model, settings, learning_rate)
    schedule = _schedule(optimizer, settings)
    model.train()
    finite = True
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for step in range(settings.steps):
            tell(f"learning rate {learning_rate:g}, step {step}/{settings.steps}")
            loss = loss_of(step)
            finite = bool(loss.isfinite())
            if not finite:
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
    model.eval()
    return finite


def _optimizer(
    model: nn.Module, settings: HeadTrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    groups: list[dict[str, Any]] = [
        {"params": others},
        {"params": biases, "lr": 2 * learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, learning_rate, momentum=0.9, weight_decay=settings.weight_decay, fused=True
    )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: HeadTrainingSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.decay_every:
        return torch.optim.lr_scheduler.StepLR(optimizer, settings.decay_every, settings.decay)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)

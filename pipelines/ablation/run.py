"""The sweep: cells as stages of a graph, halving, verdict, report, tracking."""

from functools import partial
from typing import Any

from pipelines.ablation import schedule
from pipelines.ablation.cells import failures
from pipelines.ablation.config import AblateConfig
from pipelines.ablation.sweep import run_sweep
from pipelines.errors import UserError
from pipelines.runtime.progress import plain_console


def run_ablation(config: AblateConfig) -> dict[str, Any]:
    """Run what is missing of a sweep, if it is due, and say what follows from it.

    Returns:
        what `ablation.json` holds, unless it was a scheduled start; and `delivered`: whether MLflow
        has all of it.

    Raises:
        UserError: cells failed; the others are kept, and the same command retries them.
    """
    if config.tick is None:
        return _sweep_or_fail(config)
    schedule.check_name(config.tick)
    found = schedule.once_per_period(
        partial(_complete, config),
        store=config.store,
        name=config.tick,
        period_s=config.every_hours * 3600,
    )
    missed = f"; it stands for {found.missed} missed before it" if found.missed else ""
    outcome = f"{found.decision} {found.detail}".rstrip()
    text = f"tick {config.tick}, period {found.period}: {outcome}{missed}"
    plain_console().print(text)
    if found.decision in ("incomplete", "lost"):
        raise UserError(f"tick {config.tick}: the sweep is {found.decision}; start it again")
    return {"delivered": True}


def _complete(config: AblateConfig) -> bool:
    found = run_sweep(config)
    return found["delivered"] and not failures(found)


def _sweep_or_fail(config: AblateConfig) -> dict[str, Any]:
    found = run_sweep(config)
    if failed := failures(found):
        raise UserError(
            "cells failed, and the verdict is without them; rerun the same command to try them "
            "again: " + "; ".join(failed)
        )
    return found

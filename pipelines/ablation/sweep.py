"""The sweep: cells over arms and seeds, successive halving, verdict."""

import json
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from pipelines import storage
from pipelines.ablation import comparison
from pipelines.ablation.by_setting import by_setting
from pipelines.ablation.cells import (
    cell_result,
    cell_stages,
    curve_of,
    evaluation_config,
    evaluation_settings_in_key,
    model_of_cell,
)
from pipelines.ablation.config import AblateConfig, Arm, Cell, arms, cells, pretraining
from pipelines.ablation.publish import publish_sweep
from pipelines.data.manifest import is_dataset, read_manifest
from pipelines.errors import UserError
from pipelines.evaluation import plan
from pipelines.evaluation.executor import precision_of_workers
from pipelines.pretrain.key import pretrain_key
from pipelines.runtime import cluster
from pipelines.runtime.cluster import Resources
from pipelines.runtime.progress import plain_console
from pipelines.tracking import runs
from pipelines.tracking.client import require_access, tracking_uri
from pipelines.tracking.scores import better
from pipelines.workflow.ensure_dataset import ensure_dataset
from pipelines.workflow.execute import execute


def run_sweep(config: AblateConfig) -> dict[str, Any]:
    """Train and measure every cell, compare the arms.

    Returns:
        what `ablation.json` holds, and `delivered`: whether MLflow has it.
    """
    console = plain_console()
    require_measurable(config, None)
    require_access(tracking_uri(config.tracking_uri, config.store))  # refused before any cell
    with cluster.connect() as resources:
        data = _dataset(config)
        require_measurable(config, data)
        config = _precise(config, data, resources)
        left = arms(config)
        rungs: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        for steps in (*config.rungs, config.pretrain.steps):
            batch = _run_cells(config, cells(config, left, steps), data, resources, console)
            results += batch
            if steps != config.pretrain.steps:
                kept = better_half(batch, left, config.verdict_metric)
                names = [str(arm) for arm in kept]
                rungs.append({"steps": steps, "kept": names})
                console.print(f"after {steps} steps: {', '.join(names)} continue")
                left = kept
    found = _result(config, data, results, rungs)
    return {**found, "delivered": publish_sweep(config, found, console)}


def require_measurable(config: AblateConfig, data: str | None) -> None:
    """Refuse before any training what the measurements would refuse after all of them.

    Args:
        config: the sweep.
        data: the dataset to train on; None: not prepared yet, so only the networks are looked at.
    """
    wanted = [Cell(arm, 0, config.pretrain.steps) for arm in arms(config)]
    subjects = [model_of_cell(config, cell) for cell in wanted]
    measured = evaluation_config(config, wanted[0], data or "unknown")
    if data is None:
        plan.require_subjects(subjects, measured)
    else:
        plan.require_measurable(subjects, measured, plan.layouts_of(measured))
        _require_verdict(config)


def _require_verdict(config: AblateConfig) -> None:
    """Refuse to rank by a score that nothing measures; the usual one may be missing."""
    task = config.verdict_metric.partition("/")[0]
    if task not in config.tasks and (config.metric is not None or config.rungs):
        raise UserError(
            f"metric is {config.verdict_metric}, a score of the task {task}; tasks has "
            f"{', '.join(config.tasks)}: name a score of one of these, or add the task"
        )


def _precise(config: AblateConfig, data: str, resources: Resources) -> AblateConfig:
    """With the precision that the workers measure in: cells that are compared have one."""
    measured = evaluation_config(config, Cell(arms(config)[0], 0, config.pretrain.steps), data)
    return replace(config, precision=precision_of_workers(measured, resources))


def _dataset(config: AblateConfig) -> str:
    """One dataset with the holes of every strategy."""
    first = config.strategies[0]
    wanted = replace(config.pretrain, source=config.source, store=config.store, strategy=first)
    if wanted.source is not None and not is_dataset(wanted.source):
        storage.require_folder(wanted.source, "source")
    return storage.absolute(ensure_dataset(wanted, config.strategies))


def size_executor(config: AblateConfig, resources: Resources) -> int:
    """Cells at once: a GPU per worker, or a CPU per worker and one for its data."""
    workers = config.pretrain.workers.most
    fits = resources.gpus // workers if resources.gpus else resources.cpus // (workers + 1)
    return config.concurrency or max(1, fits)


def _run_cells(
    config: AblateConfig, wanted: list[Cell], data: str, resources: Resources, console: Console
) -> list[dict[str, Any]]:
    stages = [stage for cell in wanted for stage in cell_stages(config, cell, data)]
    outcomes = execute(
        stages,
        config.store,
        resources,
        concurrency=size_executor(config, resources),
        attempts=config.attempts,
        console=console,
    )
    return [cell_result(cell, outcomes) for cell in wanted]


def better_half(results: list[dict[str, Any]], left: list[Arm], metric: str) -> list[Arm]:
    """The arms that continue: the better half, rounded up, by the mean over seeds of equal steps.

    An arm without any score goes last; whole arms go or stay, so that seeds stay paired. Where a
    cell failed, its seed counts for no arm (unless none would be left): a seed moves all arms, so
    an arm that lacks a bad one would look good.
    """
    sign = 1.0 if better(metric) == "lower" else -1.0
    scores: dict[str, dict[int, float]] = {str(arm): {} for arm in left}
    for cell in results:
        if metric in cell["scores"]:
            scores[cell["arm"]][cell["seed"]] = cell["scores"][metric]
    seeds = [set(found) for found in scores.values() if found]
    common = set.intersection(*seeds) if seeds else set()

    def badness(arm: Arm) -> float:
        found = scores[str(arm)]
        values = [value for seed, value in found.items() if seed in common or not common]
        return sign * sum(values) / len(values) if values else float("inf")

    keep = sorted(left, key=badness)[: -(-len(left) // 2)]
    return [arm for arm in left if arm in keep]


def _result(
    config: AblateConfig,
    data: str,
    results: list[dict[str, Any]],
    rungs: list[dict[str, Any]],
) -> dict[str, Any]:
    full = [cell for cell in results if cell["steps"] == config.pretrain.steps]
    names = sorted({name for cell in full for name in cell["scores"]})
    compared, settings = {}, {}
    for name in names:
        scores: dict[str, dict[int, float]] = {}
        for cell in full:
            if name in cell["scores"]:
                scores.setdefault(cell["arm"], {})[cell["seed"]] = cell["scores"][name]
        compared[name] = asdict(comparison.compare(scores, name, better(name)))
        settings[name] = [asdict(level) for level in by_setting(full, name, better(name))]
    manifest = read_manifest(data)
    curve = curve_of(config.pretrain.preset, arms(config)[0].pretext)
    metric = config.verdict_metric
    verdict = (
        compared[metric]["verdict"]
        if metric in compared
        else f"No verdict: no cell has a score {metric}; there are {', '.join(names) or 'none'}."
    )
    return {
        "format_version": 1,
        "key": sweep_key(config, data),
        "dataset_fingerprint": manifest.fingerprint,
        "source": manifest.source,
        "code": runs.git_commit(),
        "metric": metric,
        "verdict": verdict,
        "arms": [str(arm) for arm in arms(config)],
        "curve": curve,
        "seeds": config.seeds,
        "steps": config.pretrain.steps,
        "rungs": rungs,
        "comparisons": compared,
        "settings": settings,
        "cells": [
            cell if _shows(config, cell, curve) else {**cell, "curve": []} for cell in results
        ],
        "pretrain": _plain(asdict(config.pretrain)),
    }


def _shows(config: AblateConfig, cell: dict[str, Any], curve: str) -> bool:
    """Whether a cell has the curve of the report: holes and sibling pretexts measure other ones."""
    return curve_of(config.pretrain.preset, cell["pretext"]) == curve


def sweep_key(config: AblateConfig, data: str) -> str:
    """Names a sweep by what its trainings and evaluations depend on; no path."""
    manifest = read_manifest(data)
    wanted = cells(config, arms(config), config.pretrain.steps)
    return storage.content_key(
        {
            "stage": "ablation",
            "cells": [pretrain_key(pretraining(config, cell), manifest) for cell in wanted],
            "measured": evaluation_settings_in_key(evaluation_config(config, wanted[0], data)),
            "metric": config.verdict_metric,
            "rungs": list(config.rungs),
        }
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))

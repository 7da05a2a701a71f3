"""The sweep: cells as stages of a graph, halving, verdict, report, tracking."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rich.console import Console

from pipelines import (
    chain,
    cluster,
    dataset,
    evidence,
    graph,
    pretrain,
    registry,
    storage,
    tracking,
)
from pipelines.ablation import comparison, report, tick
from pipelines.ablation.config import AblateConfig, Arm, Cell, arms, cells, pretraining
from pipelines.cluster import Resources
from pipelines.errors import UserError, first_line
from pipelines.evaluation import config as measuring
from pipelines.evaluation import models, plan
from pipelines.evaluation import run as evaluation
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.models import Subject
from pipelines.evaluation.room import precision_of_workers
from pipelines.graph import Outcome, Stage
from pipelines.pretrain import PretrainConfig, checkpoint, pretrain_key
from pipelines.pretrain import config as learning
from pipelines.pretrain.run import is_committed, stage_uri
from pipelines.progress import plain_console

CURVE = "validation/psnr_hole"


def run(config: AblateConfig) -> None:
    """Run what is missing of a sweep, if it is due, and say what follows from it.

    Raises:
        UserError: cells failed; the others are kept, and the same command tries the rest again.
    """
    if config.tick is None:
        _sweep_or_fail(config)
        return
    tick.check_name(config.tick)
    found = tick.once_per_period(
        partial(_complete, config),
        store=config.store,
        name=config.tick,
        period_s=config.every_hours * 3600,
    )
    missed = f"; it stands for {found.missed} missed before it" if found.missed else ""
    told = f"{found.decision} {found.detail}".rstrip()
    text = f"tick {config.tick}, period {found.period}: {told}{missed}"
    plain_console().print(text)
    if found.decision in ("incomplete", "lost"):
        raise UserError(f"tick {config.tick}: the sweep is {found.decision}; start it again")


def _complete(config: AblateConfig) -> bool:
    return not failures(sweep(config))


def _sweep_or_fail(config: AblateConfig) -> None:
    if failed := failures(sweep(config)):
        raise UserError(
            "cells failed, and the verdict is without them; the same command tries them again: "
            + "; ".join(failed)
        )


def failures(found: dict[str, Any]) -> list[str]:
    """Cells without a result, with the reason."""
    return [
        f"{cell['arm']} seed {cell['seed']}: {cell['error']}"
        for cell in found["cells"]
        if cell["status"] == "failed"
    ]


def sweep(config: AblateConfig) -> dict[str, Any]:
    """Train and measure every cell, compare the arms; returns what `ablation.json` holds."""
    console = plain_console()
    require_measurable(config, None)
    tracking.tracking_uri(config.tracking_uri, config.store)  # refused before any cell
    with cluster.connected() as resources:
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
                console.print(f"after {steps} steps: {', '.join(names)} go on")
                left = kept
    found = _result(config, data, results, rungs)
    _publish(config, found, console)
    return found


def require_measurable(config: AblateConfig, data: str | None) -> None:
    """Refuse before any training what the measurements would refuse after all of them.

    Args:
        config: the sweep.
        data: the dataset to train on; None: not prepared yet, so only the networks are looked at.
    """
    wanted = [Cell(arm, 0, config.pretrain.steps) for arm in arms(config)]
    subjects = [_subject(config, cell) for cell in wanted]
    measured = _evaluation(config, wanted[0], data or "unknown")
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
    measured = _evaluation(config, Cell(arms(config)[0], 0, config.pretrain.steps), data)
    return replace(config, precision=precision_of_workers(measured, resources))


def _subject(config: AblateConfig, cell: Cell) -> Subject:
    """What a cell will be measured as, before it is trained."""
    return models.untrained(str(cell.arm), "random", learning.network(pretraining(config, cell)))


def _dataset(config: AblateConfig) -> str:
    """One dataset with the holes of every strategy."""
    rare = [s for s in config.strategies if s == "random_region_shapes"]  # not cut by default
    strategy = (*rare, *config.strategies)[0]
    wanted = replace(config.pretrain, source=config.source, store=config.store, strategy=strategy)
    if wanted.source is not None and not dataset.is_dataset(wanted.source):
        storage.require_folder(wanted.source, "source")
    return storage.absolute(chain.ensure_dataset(wanted))


def room(config: AblateConfig, resources: Resources) -> int:
    """Cells at once: a GPU per worker, or a CPU per worker and one for its data."""
    workers = config.pretrain.num_workers
    fits = resources.gpus // workers if resources.gpus else resources.cpus // (workers + 1)
    return config.concurrency or max(1, fits)


def _run_cells(
    config: AblateConfig, wanted: list[Cell], data: str, resources: Resources, console: Console
) -> list[dict[str, Any]]:
    stages = [stage for cell in wanted for stage in cell_stages(config, cell, data)]
    outcomes = graph.execute(
        stages,
        config.store,
        resources,
        concurrency=room(config, resources),
        attempts=config.attempts,
        console=console,
    )
    return [_cell_result(cell, outcomes) for cell in wanted]


def cell_stages(config: AblateConfig, cell: Cell, data: str) -> list[Stage]:
    """Training and evaluation of a cell."""
    training = pretraining(config, cell)
    key = pretrain_key(training, dataset.read_manifest(data))
    measured = _evaluation(config, cell, data)
    return [
        Stage(
            name=f"train {cell}",
            kind="pretrain",
            run=partial(train, config=training, data=data),
            settings={"key": key},
            workers=config.pretrain.num_workers,
        ),
        Stage(
            name=f"measure {cell}",
            kind="evaluate",
            run=partial(measure, config=measured, trained=f"train {cell}"),
            settings=_measured_with(measured),
            needs=(f"train {cell}",),
        ),
    ]


def _measured_with(config: EvaluateConfig) -> dict[str, Any]:
    layouts = plan.layouts_of(config)
    return {
        "version": measuring.KEY_VERSION,
        "precision": config.precision,
        **{
            task: {
                "settings": measuring.settings_of(config, task),
                "data": [
                    plan.fingerprint(task, uri, layouts[uri], config)
                    for uri in plan.data_for(task, layouts)
                ],
            }
            for task in config.tasks
        },
    }


def _settings_groups() -> tuple[str, ...]:
    return ("inpainting", "frozen", "finetune", "retrieval")


def _evaluation(config: AblateConfig, cell: Cell, data: str) -> EvaluateConfig:
    return EvaluateConfig(
        model=(str(cell.arm),),  # the reference is known once the cell is trained
        data=(data, *config.data),
        tasks=config.tasks,
        seeds=(cell.seed,),
        store=config.store,
        precision=config.precision or config.pretrain.precision,
        tracking_uri=config.tracking_uri,
        **{name: getattr(config, name) for name in _settings_groups()},
    )


def train(inputs: Mapping[str, Any], *, config: PretrainConfig, data: str) -> dict[str, Any]:
    """Stage: pretrain one cell; the summary, final when it is committed, and the curve."""
    summary = pretrain.run(config, data)
    stage = stage_uri(config.store, summary["key"])
    found = checkpoint.latest(stage)
    history = found.state["history"] if found else []
    curve = [[r["step"], r["values"][CURVE]] for r in history if CURVE in r["values"]]
    return {**summary, "curve": curve, "delivered": is_committed(stage)}


def measure(inputs: Mapping[str, Any], *, config: EvaluateConfig, trained: str) -> dict[str, Any]:
    """Stage: evaluate one cell; its scores by name."""
    summary = inputs[trained]
    model = summary["tracking_run_id"] if graph.delivered(summary) else summary["model"]
    found = evaluation.run(replace(config, model=(f"{config.model[0]}={model}",)))
    scores = evidence.scores_of([found], summary["weights_sha256"]).values
    return {"scores": scores, "delivered": graph.delivered(found)}


def _cell_result(cell: Cell, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    trained, measured = outcomes[f"train {cell}"], outcomes[f"measure {cell}"]
    summary = trained.result or {}
    wanted = (
        "curve",
        "validation",
        "panel",
        "tracking_run_id",
        "model",
        "weights_sha256",
        "restarts",
        "train_seconds",
    )
    return {
        "arm": str(cell.arm),
        "strategy": cell.arm.strategy,
        "adversarial": cell.arm.adversarial,
        "seed": cell.seed,
        "steps": cell.steps,
        "status": "failed" if measured.result is None else "done",
        "error": trained.error or measured.error,
        "scores": (measured.result or {}).get("scores", {}),
        "seconds": trained.seconds + measured.seconds,
        "cpu_hours": trained.cpu_hours + measured.cpu_hours,
        "gpu_hours": trained.gpu_hours + measured.gpu_hours,
        **{name: summary.get(name) for name in wanted},
    }


def better_half(results: list[dict[str, Any]], left: list[Arm], metric: str) -> list[Arm]:
    """The arms that go on: the better half, rounded up, by the mean over seeds of equal steps.

    An arm without any score goes last; whole arms go or stay, so that seeds stay paired. Where a
    cell failed, its seed counts for no arm (unless none would be left): a seed moves all arms, so
    an arm that lacks a bad one would look good.
    """
    sign = 1.0 if evidence.better(metric) == "lower" else -1.0
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
    compared = {}
    for name in names:
        scores: dict[str, dict[int, float]] = {}
        for cell in full:
            if name in cell["scores"]:
                scores.setdefault(cell["arm"], {})[cell["seed"]] = cell["scores"][name]
        compared[name] = asdict(comparison.compare(scores, name, evidence.better(name)))
    metric = config.verdict_metric
    verdict = (
        compared[metric]["verdict"]
        if metric in compared
        else f"No verdict: no cell has a score {metric}; there are {', '.join(names) or 'none'}."
    )
    return {
        "format_version": 1,
        "key": sweep_key(config, data),
        "dataset_fingerprint": dataset.read_manifest(data).fingerprint,
        "code": tracking.git_commit(),
        "metric": metric,
        "verdict": verdict,
        "arms": [str(arm) for arm in arms(config)],
        "seeds": config.seeds,
        "steps": config.pretrain.steps,
        "rungs": rungs,
        "comparisons": compared,
        "cells": results,
        "pretrain": _plain(asdict(config.pretrain)),
    }


def sweep_key(config: AblateConfig, data: str) -> str:
    """Names a sweep by what its trainings and evaluations depend on; no path."""
    manifest = dataset.read_manifest(data)
    wanted = cells(config, arms(config), config.pretrain.steps)
    return storage.content_key(
        {
            "stage": "ablation",
            "cells": [pretrain_key(pretraining(config, cell), manifest) for cell in wanted],
            "measured": _measured_with(_evaluation(config, wanted[0], data)),
            "metric": config.verdict_metric,
            "rungs": list(config.rungs),
        }
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _publish(config: AblateConfig, found: dict[str, Any], console: Console) -> None:
    home = storage.join(storage.absolute(config.store), "ablate", found["key"][:16])
    page = report.page(found, _panels(found)).encode()
    text = (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()
    storage.publish(storage.join(home, "ablation.html"), page)
    storage.publish(storage.join(home, "ablation.json"), text)
    console.print(report.table(found))
    console.print(found["verdict"])
    console.print(f"report: {storage.join(home, 'ablation.html')}", soft_wrap=True)
    uri = tracking.tracking_uri(config.tracking_uri, config.store)
    try:
        missing = _log(config, found, uri, page, text)
    except Exception as error:  # the sweep is done and stored; a server that is away costs nothing
        reason = first_line(error)
        console.print(f"warning: {uri} does not have the sweep yet ({reason}); run it again later")
        return
    if missing:
        lacking = f"warning: {uri} does not have the training runs of {'; '.join(missing)}"
        console.print(lacking, soft_wrap=True)


def _panels(found: dict[str, Any]) -> dict[str, bytes]:
    """The same validation pictures filled by the first seed of every arm."""
    return {
        cell["arm"]: storage.read_bytes(cell["panel"])
        for cell in found["cells"]
        if cell["seed"] == 0 and cell["steps"] == found["steps"] and cell["panel"]
    }


def _log(
    config: AblateConfig, found: dict[str, Any], uri: str, page: bytes, text: bytes
) -> list[str]:
    """Parent run with the report, one child per cell; the training runs lie below the children.

    Returns:
        the cells whose training run the server does not have: it was on another one.
    """
    spec = tracking.RunSpec(
        uri=uri,
        store=config.store,
        experiment=config.experiment,
        key=found["key"],
        name=f"ablation-{found['key'][:8]}",
        params={"strategies": config.strategies, "adversarial": config.adversarial,
                "seeds": config.seeds, "steps": config.pretrain.steps,
                "preset": config.pretrain.preset, "metric": found["metric"]},
        tags={"stage": "ablation", "dataset_fingerprint": found["dataset_fingerprint"]},
    )  # fmt: skip
    server = tracking.client(uri)
    missing = []
    with registry.open_run(spec, good=not failures(found)) as parent:
        for cell in found["cells"]:
            name = f"{cell['arm']} seed {cell['seed']}"
            below = replace(
                spec,
                key=storage.content_key([found["key"], cell["arm"], cell["seed"], cell["steps"]]),
                name=name,
                params={n: cell[n] for n in ("strategy", "adversarial", "seed", "steps")},
                tags={"stage": "cell", "mlflow.parentRunId": parent},
            )
            with registry.open_run(below, good=cell["status"] == "done") as child:
                _log_cell(server, child, cell)
                run_id = cell["tracking_run_id"]
                if run_id and not _put_below(uri, run_id, child):
                    missing.append(f"{name}, {cell['steps']} steps")
        for tag in ("verdict", "mlflow.note.content"):  # a column of the list, and the description
            server.set_tag(parent, tag, found["verdict"])
        tracking.log_bytes(server, parent, "ablation.html", page)
        tracking.log_bytes(server, parent, "ablation.json", text)
    return missing


def _log_cell(server: Any, child: str, cell: dict[str, Any]) -> None:
    """Scores and cost of a cell, and why it failed."""
    numbers = {
        **cell["scores"],
        "cost/cpu_hours": cell["cpu_hours"],
        "cost/gpu_hours": cell["gpu_hours"],
    }
    for name, value in numbers.items():
        server.log_metric(child, name.replace("%", " percent"), value, step=0)
    if cell["error"]:
        server.set_tag(child, "error", cell["error"])


def _put_below(uri: str, run_id: str, child: str) -> bool:
    """Put a training run below that of its cell; False when the server does not have it."""
    try:
        facts = registry.run_facts(uri, run_id)
    except UserError:
        return False
    registry.tag_run(uri, child, "training_run_id", run_id)
    if "mlflow.parentRunId" not in facts.tags:
        registry.tag_run(uri, run_id, "mlflow.parentRunId", child)
    return True

"""Run a graph of stages: only what is missing, several at a time, committed one by one."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from pipelines import storage
from pipelines.errors import RefusedError, UserError, redact
from pipelines.runtime.cluster import Resources
from pipelines.runtime.progress import ProgressDisplay
from pipelines.workflow.graph import (
    Result,
    Stage,
    StageOutcome,
    Status,
    commit_uri,
    identity_of,
    is_delivered,
    keys,
    latest_uri,
    read_commit,
    sort_by_needs,
)

LOOK_S = 0.5


LINE_EVERY_S = 60.0  # in a log: a stage may take hours


SYSTEM_RETRIES = 2  # of a task whose process died: it resumes where its stage was


def execute(
    stages: Sequence[Stage],
    store: str,
    resources: Resources,
    *,
    concurrency: int,
    attempts: int = 1,
    console: Console,
) -> dict[str, StageOutcome]:
    """Run what is missing, up to `concurrency` stages at once; needs a connected Ray.

    A stage that fails is tried `attempts` times in all, unless the fault is the user's; what
    needs it is blocked, everything else continues. The console gets a line with what is to do, one
    for every end, and now and then what is running and the time left.
    """
    kinds = Counter(stage.kind for stage in stages)
    console.print("stages:", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    with ProgressDisplay(console, "stages", len(stages), line_every_s=LINE_EVERY_S) as display:
        return _execute(stages, store, resources, concurrency, attempts, display)


def _execute(
    stages: Sequence[Stage],
    store: str,
    resources: Resources,
    concurrency: int,
    attempts: int,
    display: ProgressDisplay,
) -> dict[str, StageOutcome]:
    found = keys(stages)
    outcomes: dict[str, StageOutcome] = {}
    waiting = sort_by_needs(stages)
    running: dict[Any, tuple[Stage, int]] = {}
    began, over_at = time.monotonic(), math.inf

    def end(outcome: StageOutcome) -> None:
        nonlocal over_at
        outcomes[outcome.name] = outcome
        now = time.monotonic()
        over_at = now + seconds_left(stages, outcomes, now - began)
        display.note(f"[{len(outcomes)}/{len(stages)}] {outcome.line}")

    while waiting or running:
        for stage in list(waiting):
            before = [outcomes.get(need) for need in stage.needs]
            if any(o is None for o in before) or len(running) >= concurrency:
                continue
            waiting.remove(stage)
            bad = [o.name for o in before if o and o.result is None]
            if bad:
                why = f"needs {', '.join(bad)}"
                end(
                    StageOutcome(
                        name=stage.name, key=found[stage.name], status="blocked", error=why
                    )
                )
            elif record := read_commit(store, found[stage.name]):
                end(_outcome(record, stage.name, "skipped"))
            else:
                running[_start(stage, found, outcomes, store, resources)] = (stage, 1)
        names = ", ".join(stage.name for stage, _ in running.values())
        display.update(len(outcomes), names, left_s=over_at - time.monotonic())
        ended, _ = ray.wait(list(running), timeout=LOOK_S) if running else ([], [])
        if not ended:
            continue
        (ready,) = ended
        stage, attempt = running.pop(ready)
        try:
            end(_outcome(ray.get(ready), stage.name, "done"))
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if attempt < attempts and not isinstance(cause, UserError):
                again = _start(stage, found, outcomes, store, resources)
                running[again] = (stage, attempt + 1)
                continue
            text = str(cause) if isinstance(cause, UserError) else _short(cause)
            status: Status = "refused" if isinstance(cause, RefusedError) else "failed"
            end(StageOutcome(name=stage.name, key=found[stage.name], status=status, error=text))
    display.update(len(outcomes))
    return outcomes


def seconds_left(
    stages: Sequence[Stage], outcomes: Mapping[str, StageOutcome], elapsed_s: float
) -> float:
    """What is to come takes as long as what was run of its kind, and as many run at once.

    Infinite while nothing of a kind that is to come was run.
    """
    took: dict[str, list[float]] = {}
    for stage in stages:
        if stage.name in outcomes and outcomes[stage.name].status == "done":
            took.setdefault(stage.kind, []).append(outcomes[stage.name].seconds)
    coming = [stage.kind for stage in stages if stage.name not in outcomes]
    if any(kind not in took for kind in coming):
        return math.inf
    worked_s = sum(map(sum, took.values()))
    return elapsed_s * sum(fmean(took[kind]) for kind in coming) / max(worked_s, elapsed_s / 1e6)


def _start(
    stage: Stage,
    found: Mapping[str, str],
    outcomes: Mapping[str, StageOutcome],
    store: str,
    resources: Resources,
) -> Any:
    inputs = {need: outcomes[need].result for need in stage.needs}
    record = {**identity_of(stage, found), "name": stage.name, "key": found[stage.name]}
    record["store"] = redact(storage.absolute(store))
    task = ray.remote(num_cpus=0, max_retries=SYSTEM_RETRIES)(_run_and_commit)
    return task.options(name=stage.name).remote(stage, inputs, record, store, resources)


def _run_and_commit(
    stage: Stage,
    inputs: Mapping[str, Result],
    record: dict[str, Any],
    store: str,
    resources: Resources,
) -> dict[str, Any]:
    began = time.time()
    result = stage.run(inputs)
    if not all(map(is_delivered, inputs.values())):
        result = {**result, "delivered": False}
    seconds = time.time() - began
    hours = seconds / 3600 * (resources.cpus if stage.workers is None else stage.workers)
    on_gpus = bool(resources.gpus) and stage.workers is not None
    record |= {
        "result": result,
        "began": began,
        "seconds": seconds,
        "cpu_hours": 0.0 if on_gpus else hours,
        "gpu_hours": hours if on_gpus else 0.0,
    }
    if not is_delivered(result):
        return record
    try:
        storage.publish_json(commit_uri(store, record["key"]), record, exclusive=True)
    except FileExistsError:  # another job was first; both results are of the same key
        record = read_commit(store, record["key"]) or record
    last = {name: record[name] for name in ("key", "settings", "inputs")}
    storage.publish_json(latest_uri(store, stage.name), last)
    return record


def _outcome(record: Mapping[str, Any], name: str, status: Status) -> StageOutcome:
    measured = {key: record[key] for key in ("key", "seconds", "cpu_hours", "gpu_hours", "result")}
    return StageOutcome(name=name, status=status, final=is_delivered(record["result"]), **measured)


def _short(error: object) -> str:
    """The last lines of a traceback say what happened; the rest is in the task's log."""
    lines = str(error).strip().splitlines()[-3:]
    return redact(f"{type(error).__name__}: {' '.join(line.strip() for line in lines)}")[:600]

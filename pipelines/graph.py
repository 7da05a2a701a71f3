"""Stages that depend on each other, as Ray tasks: run what is missing, skip what is committed.

A stage is a function from the results of the stages it needs to a JSON result. Its key is the
sha256 over its kind, its settings and the keys of its needs; its result is committed once, under
`<store>/workflow/<key>/commit.json`. So the same command runs only what is missing, after any
death, and two graphs that contain the same work share it. A result that says `delivered: False` is
not final, since MLflow was away: what needs it runs, but neither is committed, and the same command
runs them again. The tasks themselves take no CPU: what they start (Ray Data, Ray Train) asks for
its own.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from pipelines import storage
from pipelines.cluster import Resources
from pipelines.errors import UserError
from pipelines.progress import ProgressDisplay, duration

FORMAT_VERSION = 2  # format 1 also has results that are not final
COMMIT = "commit.json"
LOOK_S = 0.5
LINE_EVERY_S = 60.0  # in a log: a stage may take hours
SYSTEM_RETRIES = 2  # of a task whose process died: it goes on where its stage was
NOT_FINAL = "MLflow was away; the same command delivers the rest"

Result = dict[str, Any]
Status = Literal["done", "skipped", "failed", "blocked", "left out"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the work."""

    name: str
    """Unique in its graph, for people."""
    kind: str
    """What is done; with settings and needs it makes the key."""
    run: Callable[[Mapping[str, Result]], Result]
    """Results of the needed stages by name -> result, plain JSON; `delivered: False` in it says
    that the stage has to run again."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the result depends on beside the needed stages, plain JSON; no path, time or count."""
    needs: tuple[str, ...] = ()
    workers: int | None = None
    """Devices it keeps busy, for its cost; None: every CPU of the cluster."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended."""

    name: str
    key: str
    status: Status
    seconds: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    result: Result | None = None
    error: str | None = None
    final: bool = True

    @property
    def line(self) -> str:
        """In a sentence."""
        took = f" in {duration(self.seconds)}" if self.status == "done" else ""
        why = self.error or ("" if self.final else NOT_FINAL)
        return f"{self.name}: {self.status}{took}" + (f": {why}" if why else "")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What would happen to a stage, and why."""

    name: str
    key: str
    runs: bool
    why: str


def delivered(result: Result) -> bool:
    """Whether a result is final."""
    return bool(result.get("delivered", True))


def ordered(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each after what it needs, otherwise in the given order.

    Raises:
        UserError: two stages of one name, an unknown need, or a circle.
    """
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) < len(stages):
        raise UserError("the graph has two stages of one name")
    placed: dict[str, Stage] = {}

    def place(name: str, path: tuple[str, ...]) -> None:
        if name in path or name not in by_name:
            raise UserError(f"the graph cannot be ordered: {' needs '.join([*path, name])}")
        for need in by_name[name].needs:
            if need not in placed:
                place(need, (*path, name))
        placed[name] = by_name[name]

    for stage in stages:
        if stage.name not in placed:
            place(stage.name, ())
    return list(placed.values())


def keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Content keys by name."""
    found: dict[str, str] = {}
    for stage in ordered(stages):
        found[stage.name] = storage.content_key(_identity(stage, found))
    return found


def _identity(stage: Stage, found: Mapping[str, str]) -> dict[str, Any]:
    return {
        "stage": stage.kind,
        "format": FORMAT_VERSION,
        "settings": dict(stage.settings),
        "inputs": [found[need] for need in stage.needs],
    }


def commit_uri(store: str, key: str) -> str:
    """Where the record of a finished stage lies."""
    return storage.join(storage.absolute(store), "workflow", key[:16], COMMIT)


def committed(store: str, key: str) -> dict[str, Any] | None:
    """The record of a finished stage."""
    uri = commit_uri(store, key)
    if not storage.exists(uri):
        return None
    record: dict[str, Any] = storage.read_json(uri)
    return record


def _latest_uri(store: str, name: str) -> str:
    safe = storage.content_key(name)[:16]
    return storage.join(storage.absolute(store), "workflow", "latest", f"{safe}.json")


def plan(stages: Sequence[Stage], store: str) -> list[Planned]:
    """What a run of the graph would do, without doing it."""
    found = keys(stages)
    runs: dict[str, bool] = {}
    planned = []
    for stage in ordered(stages):
        runs[stage.name] = committed(store, found[stage.name]) is None
        why = _why(stage, found, store) if runs[stage.name] else "committed"
        planned.append(
            Planned(name=stage.name, key=found[stage.name], runs=runs[stage.name], why=why)
        )
    return planned


def _why(stage: Stage, found: Mapping[str, str], store: str) -> str:
    """Compare with the last finished stage of the same name."""
    uri = _latest_uri(store, stage.name)
    if not storage.exists(uri):
        return "never finished in this store"
    before = storage.read_json(uri)
    old, new = _flat(before["settings"]), _flat(json.loads(json.dumps(stage.settings)))
    changes = [
        f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    changes += [
        f"input {need} changed"
        for need, was in zip(stage.needs, before["inputs"], strict=False)
        if found[need] != was
    ]
    if len(stage.needs) != len(before["inputs"]):
        changes.append(f"{len(before['inputs'])} inputs -> {len(stage.needs)}")
    return "; ".join(changes) or "its result is gone from the store"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def until(stages: Sequence[Stage], last: str) -> list[Stage]:
    """The stage `last` and all that it needs."""
    by_name = {stage.name: stage for stage in stages}
    if last not in by_name:
        raise UserError(f"until is '{last}'; it must be one of {', '.join(by_name)}")
    wanted: set[str] = set()
    open_ = [last]
    while open_:
        name = open_.pop()
        wanted.add(name)
        open_ += [need for need in by_name[name].needs if need not in wanted]
    return [stage for stage in stages if stage.name in wanted]


def execute(
    stages: Sequence[Stage],
    store: str,
    resources: Resources,
    *,
    concurrency: int,
    attempts: int = 1,
    console: Console,
) -> dict[str, Outcome]:
    """Run what is missing, up to `concurrency` stages at once; needs a connected Ray.

    A stage that fails is tried `attempts` times in all, unless the fault is the user's; what
    needs it is blocked, everything else goes on. The console gets a line with what is to do, one
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
) -> dict[str, Outcome]:
    found = keys(stages)
    outcomes: dict[str, Outcome] = {}
    waiting = ordered(stages)
    running: dict[Any, tuple[Stage, int]] = {}
    began, over_at = time.monotonic(), math.inf

    def end(outcome: Outcome) -> None:
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
                end(Outcome(name=stage.name, key=found[stage.name], status="blocked", error=why))
            elif record := committed(store, found[stage.name]):
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
            end(Outcome(name=stage.name, key=found[stage.name], status="failed", error=text))
    display.update(len(outcomes))
    return outcomes


def seconds_left(
    stages: Sequence[Stage], outcomes: Mapping[str, Outcome], elapsed_s: float
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
    outcomes: Mapping[str, Outcome],
    store: str,
    resources: Resources,
) -> Any:
    inputs = {need: outcomes[need].result for need in stage.needs}
    record = {**_identity(stage, found), "name": stage.name, "key": found[stage.name]}
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
    if not all(map(delivered, inputs.values())):
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
    if not delivered(result):
        return record
    try:
        storage.publish_json(commit_uri(store, record["key"]), record, exclusive=True)
    except FileExistsError:  # another job was first; both results are of the same key
        record = storage.read_json(commit_uri(store, record["key"]))
    last = {name: record[name] for name in ("key", "settings", "inputs")}
    storage.publish_json(_latest_uri(store, stage.name), last)
    return record


def _outcome(record: Mapping[str, Any], name: str, status: Status) -> Outcome:
    measured = {key: record[key] for key in ("key", "seconds", "cpu_hours", "gpu_hours", "result")}
    return Outcome(name=name, status=status, final=delivered(record["result"]), **measured)


def _short(error: object) -> str:
    """The last lines of a traceback say what happened; the rest is in the task's log."""
    lines = str(error).strip().splitlines()[-3:]
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines)}"[:600]


def json_bytes(value: object) -> bytes:
    """Readable JSON for an artifact."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """For a report: everything but the results."""
    return [{k: v for k, v in asdict(o).items() if k != "result"} for o in outcomes]

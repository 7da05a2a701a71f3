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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines import storage
from pipelines.errors import UserError
from pipelines.runtime.progress import duration
from pipelines.storage import commits

FORMAT_VERSION = 2  # format 1 also has results that are not final


NOT_FINAL = "MLflow was away; rerun the same command to deliver the rest"


Result = dict[str, Any]


Status = Literal["done", "skipped", "failed", "refused", "blocked", "left out"]


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
class StageOutcome:
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


def is_delivered(result: Result) -> bool:
    """Whether a result is final."""
    return bool(result.get("delivered", True))


def sort_by_needs(stages: Sequence[Stage]) -> list[Stage]:
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
    for stage in sort_by_needs(stages):
        found[stage.name] = storage.content_key(identity_of(stage, found))
    return found


def identity_of(stage: Stage, found: Mapping[str, str]) -> dict[str, Any]:
    """What a stage's key is made from."""
    return {
        "stage": stage.kind,
        "format": FORMAT_VERSION,
        "settings": dict(stage.settings),
        "inputs": [found[need] for need in stage.needs],
    }


def commit_uri(store: str, key: str) -> str:
    """Where the record of a finished stage lies."""
    return commits.commit_uri(_folder(store, key))


def read_commit(store: str, key: str) -> dict[str, Any] | None:
    """The record of a finished stage."""
    record = commits.read_commit(_folder(store, key))
    if record is not None and (old := record.get("store")):  # it may have been moved since
        record["result"] = storage.relocate(record["result"], old, storage.absolute(store))
    return record


def _folder(store: str, key: str) -> str:
    return storage.join(storage.absolute(store), "workflow", key[:16])


def latest_uri(store: str, name: str) -> str:
    """Where it is noted how a stage of that name ran last."""
    safe = storage.content_key(name)[:16]
    return storage.join(storage.absolute(store), "workflow", "latest", f"{safe}.json")


def plan(stages: Sequence[Stage], store: str) -> list[Planned]:
    """What a run of the graph would do, without doing it."""
    found = keys(stages)
    runs: dict[str, bool] = {}
    planned = []
    for stage in sort_by_needs(stages):
        runs[stage.name] = read_commit(store, found[stage.name]) is None
        why = _why(stage, found, store) if runs[stage.name] else "committed"
        planned.append(
            Planned(name=stage.name, key=found[stage.name], runs=runs[stage.name], why=why)
        )
    return planned


def _why(stage: Stage, found: Mapping[str, str], store: str) -> str:
    """Compare with the last finished stage of the same name."""
    uri = latest_uri(store, stage.name)
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


def json_bytes(value: object) -> bytes:
    """Readable JSON for an artifact."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def as_json(outcomes: Iterable[StageOutcome]) -> list[dict[str, Any]]:
    """For a report: everything but the results."""
    return [{k: v for k, v in asdict(o).items() if k != "result"} for o in outcomes]

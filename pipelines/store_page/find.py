"""What a store holds, read from the records that its jobs left; nothing is asked of MLflow."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from pipelines import storage
from pipelines.data.manifest import MANIFEST
from pipelines.data.source_names import source_name
from pipelines.storage import commits

READS_AT_ONCE = 16  # in a bucket each is a request
STATE = "state.json"  # as in models.checkpoint, which needs torch
MAX_STATE_BYTES = 4 << 20  # of a checkpoint's curves, for trainings that left no summary of theirs
UNITS = {  # of a curve, by what it is drawn of: the first of these that was measured
    "psnr_hole": "dB",
    "target_error": "error of the target",
    "accuracy": "share of right answers",
}
SHOWN = ("preset", "strategy", "steps", "dataset", "dataset_fingerprint", "validation")

Found = TypeVar("Found")
Curve = list[tuple[int, float]]
"""Step and value."""


class Training(NamedTuple):
    """A training, finished or not."""

    key: str
    uri: str
    at: datetime
    """When it ended, or when its newest checkpoint was written."""
    summary: dict[str, Any]
    """Empty while it is not finished."""
    step: int | None
    """Of the newest checkpoint of one that is not finished."""
    preset: str
    """Of its network; empty where an unfinished one does not say."""
    curve: Curve
    """Validation over the steps, see `curve_of`."""
    unit: str
    """Of the curve."""
    has_panel: bool


class Prepared(NamedTuple):
    """A prepared dataset in the store."""

    key: str
    uri: str
    at: datetime
    name: str
    images: int
    has_card: bool


class Measured(NamedTuple):
    """A report of an evaluation or of a sweep."""

    uri: str
    """Of the page."""
    at: datetime
    title: str
    text: str


class Unreadable(NamedTuple):
    """A record that is damaged, or of a version to come."""

    uri: str
    reason: str


class Contents(NamedTuple):
    """All of a store, each kind newest first."""

    trainings: list[Training]
    datasets: dict[str, Prepared]
    """By fingerprint, which a training names."""
    evaluations: list[Measured]
    sweeps: list[Measured]
    unreadable: list[Unreadable]


def find_contents(store: str) -> Contents:
    """Look through a store."""
    home = storage.absolute(store)
    unreadable: list[Unreadable] = []

    def collect(parts: Sequence[str], read: Callable[[str], Found | None]) -> list[Found]:
        folder = storage.join(home, *parts)
        uris = [storage.join(folder, name) for name in storage.children(folder)]

        def attempt(uri: str) -> Found | Unreadable | None:
            try:
                return read(uri)
            except FileNotFoundError:  # not finished, or another job cleared it away
                return None
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                return Unreadable(uri, f"{type(error).__name__}: {error}"[:200])

        with ThreadPoolExecutor(READS_AT_ONCE) as threads:
            every = list(threads.map(attempt, uris))
        unreadable.extend(found for found in every if isinstance(found, Unreadable))
        return [f for f in every if f is not None and not isinstance(f, Unreadable)]

    datasets = dict(collect(("prepare",), _read_dataset))
    return Contents(
        trainings=_newest_first(collect(("pretrain",), _read_training)),
        datasets=datasets,
        evaluations=_newest_first(collect(("evaluate", "reports"), _read_evaluation)),
        sweeps=_newest_first(collect(("ablate",), _read_sweep)),
        unreadable=unreadable,
    )


Dated = TypeVar("Dated", Training, Measured)


def _newest_first(found: list[Dated]) -> list[Dated]:
    return sorted(found, key=lambda each: each.at, reverse=True)


def _read_training(uri: str) -> Training | None:
    key = uri.rpartition("/")[2]
    names = set(storage.children(uri))
    has_panel = "panel.png" in names
    if commits.COMMIT in names:
        summary = commits.read_commit(uri) or {}
        itemgetter(*SHOWN)(summary)
        at = _time(summary.get("ended_at"), commits.commit_uri(uri))
        noted = [(int(step), float(value)) for step, value in summary.get("curve", ())]
        curve = noted or curve_of(_read_state(_newest_state(uri)).get("history", ()))
        preset, unit = str(summary["preset"]), unit_of(summary["validation"])
        return Training(key, uri, at, summary, None, preset, curve, unit, has_panel)
    newest = _newest_state(uri)
    if newest is None:
        return None
    step = int(newest.rsplit("/", 2)[1].rpartition("-")[2])
    state = _read_state(newest)
    preset = str(state.get("network", {}).get("preset", ""))
    history = state.get("history", ())
    at, curve = storage.modified(newest), curve_of(history)
    unit = unit_of({name.removeprefix("validation/") for r in history for name in r["values"]})
    return Training(key, uri, at, {}, step, preset, curve, unit, has_panel)


def _newest_state(stage: str) -> str | None:
    """The record of the newest checkpoint."""
    folder = storage.join(stage, "checkpoints")
    for name in reversed(storage.children(folder)):
        state = storage.join(folder, name, STATE)
        if name.startswith("step-") and storage.exists(state):
            return state
    return None


def _read_state(state: str | None) -> dict[str, Any]:
    """What a checkpoint remembers; nothing where that is too much for a page."""
    if state is None or storage.size(state) > MAX_STATE_BYTES:
        return {}
    found: dict[str, Any] = storage.read_json(state)
    return found


def curve_of(history: Sequence[dict[str, Any]]) -> Curve:
    """The validation curve of a training's history: PSNR of the hole, else the target's error.

    Of a sibling pretext its accuracy.
    """
    for name in (f"validation/{measure}" for measure in UNITS):
        found = [(int(r["step"]), float(r["values"][name])) for r in history if name in r["values"]]
        if found:
            return found
    return []


def unit_of(measured: Collection[str]) -> str:
    """Unit of the curve of a training of which this was measured."""
    return next((unit for name, unit in UNITS.items() if name in measured), "")


def _read_dataset(uri: str) -> tuple[str, Prepared]:
    place = storage.join(uri, MANIFEST)
    manifest = storage.read_json(place)
    return str(manifest["fingerprint"]), Prepared(
        key=uri.rpartition("/")[2],
        uri=uri,
        at=storage.modified(place),
        name=source_name(str(manifest.get("source", ""))),
        images=int(manifest["written"]),
        has_card=storage.exists(storage.join(uri, "card.html")),
    )


def _read_evaluation(uri: str) -> Measured:
    place = storage.join(uri, "report.json")
    report = storage.read_json(place)
    models = ", ".join(model["name"] for model in report["models"])
    sections = ", ".join(section["title"] for section in report["sections"])
    at = _time(report.get("at"), place)
    return Measured(storage.join(uri, "report.html"), at, models or "classical methods", sections)


def _read_sweep(uri: str) -> Measured:
    place = storage.join(uri, "ablation.json")
    report = storage.read_json(place)
    arms = ", ".join(report["arms"])
    at = _time(report.get("at"), place)
    return Measured(storage.join(uri, "ablation.html"), at, arms, str(report["verdict"]))


def _time(noted: object, place: str) -> datetime:
    """When something was made: as it says itself, else when its record was written."""
    if noted is None:
        return storage.modified(place)
    found = datetime.fromisoformat(str(noted))
    return found if found.tzinfo else found.replace(tzinfo=UTC)

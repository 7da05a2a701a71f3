"""The scores of one model out of an evaluation report, by plain names.

A name is the task, what was measured, and the score: `inpainting/random_region/hole/128/PSNR`,
`linear/conv5/100%/accuracy`; where a report has a task on several data, their name follows that of
the task. Of several reports the newest counts. Beside each score stands a key of how it was
measured (task settings, data, precision, number of seeds): scores of two models may be compared
only when these are equal. Which seeds they were does not matter: a sweep measures every training
with the seed of its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines import storage

Better = Literal["lower", "higher"]

LOWER_IS_BETTER = {"L1", "L2"}
NOT_A_SCORE = {"pictures"}
NAMED_BY = ("holes", "region", "hidden", "side", "features", "layer", "labels")
OWN_METHOD = "this model"
MODEL = "model"  # kind of a row that is no baseline
USUAL = {"hidden": "any"}


@dataclass
class Scores:
    """Scores of one model."""

    values: dict[str, float] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    """Key of how each score was measured, by its name."""
    tasks: set[str] = field(default_factory=set)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same score, in the same evaluation, of what needs no such training: of a classical method
    by its name, of a row such as `random` by its model's."""


def better(name: str) -> Better:
    """Which direction of a score is good."""
    return "lower" if name.rsplit("/", 1)[-1] in LOWER_IS_BETTER else "higher"


def scores_of(reports: Iterable[dict[str, Any]], weights_sha256: str) -> Scores:
    """What the reports say about the model of exactly these weights."""
    scores = Scores()
    for report in sorted(reports, key=lambda report: str(report.get("at", ""))):
        rows = {m["name"] for m in report["models"] if m["sha256"] == weights_sha256}
        shared = {m["name"] for m in report["models"] if m["sha256"] != weights_sha256}
        untrained = {m["name"] for m in report["models"] if m.get("kind", MODEL) != MODEL}
        for section in report["sections"]:
            _take(section, rows - shared, report, scores)
            _take_baselines(section, untrained - rows, report, scores)
    return scores


def _take(section: dict[str, Any], rows: set[str], report: dict[str, Any], scores: Scores) -> None:
    notes = section["notes"].values()
    how = storage.content_key(
        {
            "task": section["task"],
            "data": section.get("data_key") or section["data"].rstrip("/").rsplit("/", 1)[-1],
            "settings": [note.get("settings") for note in notes][:1],
            "dtypes": sorted({note["dtype"] for note in notes if "dtype" in note}),
            "seeds": len(report["seeds"]),
            "precision": report["precision"],
        }
    )
    head = _head(section, report)
    for row in section["rows"]:
        if row["model"] not in rows or row.get("method", OWN_METHOD) != OWN_METHOD:
            continue
        for name, value in _scores_in(row, head):
            scores.values[name] = value
            scores.measured[name] = how
            scores.baselines[name] = {}
            scores.tasks.add(section["task"])


def _take_baselines(
    section: dict[str, Any], untrained: set[str], report: dict[str, Any], scores: Scores
) -> None:
    """Of the scores that the section has of the model, those of the other rows."""
    head = _head(section, report)
    for row in section["rows"]:
        is_classical = not row["model"]
        if not is_classical and row["model"] not in untrained:
            continue
        for name, value in _scores_in(row, head):
            if name in scores.baselines:
                method = row["method"] if is_classical else row["model"]
                scores.baselines[name][method] = value


def _head(section: dict[str, Any], report: dict[str, Any]) -> str:
    """What the names of a section's scores begin with."""
    tasks = [each["task"] for each in report["sections"]]
    alone = tasks.count(section["task"]) == 1
    return str(section["task"] if alone else section["title"].replace(", ", "/"))


def _scores_in(row: dict[str, Any], head: str) -> Iterator[tuple[str, float]]:
    named = [row[name] for name in NAMED_BY if name in row and row[name] != USUAL.get(name)]
    for score, value in row.items():
        if isinstance(value, dict) and value["mean"] is not None and score not in NOT_A_SCORE:
            yield "/".join([head, *named, score]), float(value["mean"])

"""Gates: what a model must show before it becomes champion, and whether it does.

A comparison with the champion is a test of non-inferiority: with the seeds of both, the lower end
of the one-sided 95 % interval (Welch) of "candidate minus champion" must not lie below the margin.
So a wide spread of the seeds speaks against a model, never for it. With one seed on a side the
spread is unknown, and the plain difference must keep the margin. The one model that would be
served must keep it too, against the one that is.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.stats import t

from pipelines import cli
from pipelines.errors import UserError, counted
from pipelines.tracking.scores import better

CONFIDENCE = 0.95
ALARM = "alarm."  # prefix of the tags that a training run gives itself
BOUNDS = ("min", "max")
LINKED = "configs/gates.yaml"  # in a checkout, a link to the gates.yaml beside this file
STRATEGY = "{strategy}"  # in the name of a score: the holes that the model was trained with
RING = r"(?: in a ring of \d+ px)?"  # as `HoleSet.name` of the evaluation has it
ROUNDING = 1e-9  # of a difference of scores: 0.30 - 0.35 is a little more than 0.05 below 0

Demand = TypeVar("Demand")


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What is demanded.

    In names of scores `*` stands for anything but a slash, `{strategy}` for the holes that the
    model was trained with, in a ring of any width.
    """

    required: tuple[str, ...] = ()
    """Tasks that must have been measured."""
    min_seeds: int = 1
    """Trainings with different seeds that every gated score must have, this one's among them."""
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Scores by name, each with `min` or `max`."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Scores compared with the champion, and how much worse they may be."""
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Scores compared with other rows of the same evaluation, such as Telea's method, each with how
    much better at least."""


class Verdict(NamedTuple):
    """Whether one gate holds, with both numbers."""

    gate: str
    passed: bool
    found: str
    wanted: str

    def __str__(self) -> str:
        """One line."""
        sign = "passed" if self.passed else "FAILED"
        return f"{sign}  {self.gate}: {self.found}; wanted {self.wanted}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is known of a model; scores by name, then by run of the same arm, this one first."""

    run_id: str
    status: str
    logged_sha256: str | None
    """Of the weights inside the logged model; None: they do not load."""
    load_problem: str
    """Why the logged model cannot be used; empty when it can."""
    evaluated_sha256: frozenset[str]
    """Of the weights that the evaluation reports speak of."""
    scores: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, str]
    """Key of how each score was measured."""
    tasks: frozenset[str]
    seeds: int
    alarms: Mapping[str, str]
    dataset_fingerprint: str
    code: str
    unsafe_files: tuple[str, ...]
    """Files of the logged model that could run code when loaded."""
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of each score what needs no such training reached in the same evaluation, by its name."""
    strategy: str = ""
    """Holes it was trained with."""
    reads: str = ""
    """What the network takes and gives: preset, side and output; empty: it does not load."""
    fills: bool = False
    """Whether it fills holes, and not only gives features."""


def default_gates() -> str:
    """The file of the gates that are demanded unless others are named: it comes with the package.

    Raises:
        UserError: the folder we are in has a file of its own where the checkout links to this one.
    """
    packaged = Path(__file__).with_name("gates.yaml")
    here = Path(LINKED)
    if here.is_file() and here.read_bytes() != packaged.read_bytes():
        raise UserError(
            f"{LINKED} in this folder differs from the default gates, which come with the package; "
            f"say which are meant: --gates {LINKED} or --gates {packaged}"
        )
    return str(packaged)


def read_gates(path: str | None) -> Gates:
    """The gates of a YAML file; None: the default ones.

    Raises:
        UserError: an unknown name, or a value that means nothing.
    """
    path = path or default_gates()
    tree = cli.read_yaml(path, "--gates")
    known = [each.name for each in fields(Gates)]
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"gates file {path}: '{name}' is no gate{hint} ({', '.join(known)})")
    _check_types(tree, path)
    return Gates(**{**tree, "required": tuple(tree.get("required", ()))})


def _check_types(tree: dict[str, Any], path: str) -> None:
    required = tree.get("required", [])
    if not (isinstance(required, list) and all(isinstance(task, str) for task in required)):
        raise UserError(f"gates file {path}: required is {required}; it must be a list of tasks")
    seeds = tree.get("min_seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise UserError(f"gates file {path}: min_seeds is {seeds}; it must be 1 or more")
    for name, bounds in _items(tree, "thresholds", path):
        if not (isinstance(bounds, dict) and bounds and set(bounds) <= set(BOUNDS)):
            raise UserError(
                f"gates file {path}: thresholds.{name} is {bounds}; it must be like {{min: 12.5}} "
                "or {max: 0.02}"
            )
        for bound, value in bounds.items():
            _check_number(value, f"thresholds.{name}.{bound}", path)
    for name, others in _items(tree, "baselines", path):
        if not (isinstance(others, dict) and others):
            raise UserError(
                f"gates file {path}: baselines.{name} is {others}; it must be like {{Telea: 0.5}}: "
                "rows of the same evaluation, and how much better than each"
            )
        for method, gain in others.items():
            _check_number(gain, f"baselines.{name}.{method}", path)
    for name, margin in _items(tree, "margins", path):
        _check_number(margin, f"margins.{name}", path)
        if margin < 0:
            raise UserError(
                f"gates file {path}: margins.{name} is {margin}; it must be 0 or more, in the "
                "units of the score: how much worse than the champion is still allowed"
            )


def _items(tree: dict[str, Any], name: str, path: str) -> Sequence[tuple[str, Any]]:
    found = tree.get(name) or {}
    if not isinstance(found, dict):
        raise UserError(f"gates file {path}: {name} is {found}; it must hold `score: value` lines")
    return list(found.items())


def _check_number(value: Any, name: str, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"gates file {path}: {name} is {value!r}; it must be a number")


def integrity(model: Candidate, gates: Gates) -> list[Verdict]:
    """Whether the evidence is there and speaks of exactly this model; asked before registering."""
    missing = sorted(set(gates.required) - model.tasks)
    sha = model.logged_sha256
    return [
        Verdict("run", model.status == "FINISHED", model.status, "FINISHED"),
        Verdict(
            "measured",
            bool(model.tasks) and not missing,
            f"{', '.join(sorted(model.tasks)) or 'nothing'}",
            f"{', '.join(gates.required) or 'at least one task'} "
            f"(python jobs/evaluate.py --model {model.run_id} --data DATASET)",
        ),
        Verdict(
            "weights",
            sha is not None and sha in model.evaluated_sha256,
            f"sha256 {_short(sha)} in the logged model",
            f"that of the evaluated weights, "
            f"{', '.join(map(_short, sorted(model.evaluated_sha256))) or 'none'}",
        ),
        Verdict(
            "loads without pickle",
            not model.unsafe_files and not model.load_problem,
            model.load_problem or f"unsafe files: {', '.join(model.unsafe_files) or 'none'}",
            "plain tensors and our own code, loading strictly",
        ),
        Verdict(
            "dataset recorded",
            bool(model.dataset_fingerprint),
            _short(model.dataset_fingerprint or None),
            "a fingerprint",
        ),
        Verdict(
            "code recorded",
            model.code not in ("", "unknown"),
            model.code or "nothing",
            "a git commit",
        ),
    ]


def quality(model: Candidate, champion: Candidate | None, gates: Gates) -> list[Verdict]:
    """Whether the model is good enough, and not worse than the champion."""
    alarms = ", ".join(f"{name}: {value}" for name, value in sorted(model.alarms.items()))
    wanted = (*gates.thresholds, *gates.margins, *gates.baselines)
    gated = {name for each in wanted for name in expand(each, model)}
    gated &= set(model.scores)  # the others fail themselves
    seeds = min((len(model.scores[name]) for name in gated), default=model.seeds)
    verdicts = [
        Verdict("no collapse alarm", not alarms, alarms or "none", "none"),
        Verdict("seeds", seeds >= gates.min_seeds, f"{seeds} measured", f"{gates.min_seeds}"),
    ]
    for name, bounds in _expanded(gates.thresholds, model):
        verdicts += _threshold(name, bounds, model)
    for name, others in _expanded(gates.baselines, model):
        verdicts += [_ahead(name, method, gain, model) for method, gain in others.items()]
    if champion is not None:
        margins = _expanded(gates.margins, model)
        verdicts += [_margin(name, margin, model, champion) for name, margin in margins]
    return verdicts


def expand(name: str, model: Candidate) -> list[str]:
    """The scores that a name in a gates file means; the name itself where none was measured."""
    own = re.escape(model.strategy) + RING if model.strategy else "[^/]*"
    parts = ("[^/]*".join(map(re.escape, part.split("*"))) for part in name.split(STRATEGY))
    pattern = own.join(parts)
    found = sorted(score for score in model.scores if re.fullmatch(pattern, score))
    return found or [name.replace(STRATEGY, model.strategy or "*")]


def _expanded(named: Mapping[str, Demand], model: Candidate) -> Iterator[tuple[str, Demand]]:
    """Every score with what is demanded of it; of several names that mean it, the last."""
    found = {score: value for name, value in named.items() for score in expand(name, model)}
    yield from found.items()


def _ahead(name: str, method: str, gain: float, model: Candidate) -> Verdict:
    """Whether the model is better than another row of its evaluation."""
    gate = f"better than {method} on {name}"
    wanted = f"better by at least {gain:g}"
    ours = model.scores.get(name, {}).get(model.run_id)
    theirs = model.baselines.get(name, {}).get(method)
    if ours is None or theirs is None:
        who = "this model" if ours is None else method
        return Verdict(gate, False, f"not measured for {who}", f"{wanted}, in one evaluation")
    sign = 1.0 if better(name) == "higher" else -1.0
    found = sign * (ours - theirs)
    text = f"{ours:.6g} against {theirs:.6g}, {'better' if found >= 0 else 'worse'} by "
    return Verdict(gate, found - gain >= -ROUNDING, f"{text}{abs(found):.4g}", wanted)


def _threshold(name: str, bounds: Mapping[str, float], model: Candidate) -> Iterator[Verdict]:
    for bound, limit in bounds.items():
        value = model.scores.get(name, {}).get(model.run_id)
        passed = value is not None and (value >= limit if bound == "min" else value <= limit)
        found = "not measured" if value is None else f"{value:.6g}"
        yield Verdict(f"{bound} {name}", passed, found, f"{bound} {limit:g}")


def _margin(name: str, margin: float, model: Candidate, champion: Candidate) -> Verdict:
    gate = f"not worse than the champion on {name}"
    ours, theirs = model.scores.get(name, {}), champion.scores.get(name, {})
    if model.run_id not in ours or champion.run_id not in theirs:
        who = "the champion" if model.run_id in ours else "this model"
        return Verdict(gate, False, f"not measured for {who}", "a score of both")
    if model.measured[name] != champion.measured[name]:
        return Verdict(
            gate, False, "measured with other settings than the champion", "equal settings and data"
        )
    sign = 1.0 if better(name) == "higher" else -1.0
    gain = sign * float(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    slack = spread_of_difference(list(ours.values()), list(theirs.values()))
    own = sign * (ours[model.run_id] - theirs[champion.run_id])
    found = (
        f"{_mean(ours)} against {_mean(theirs)}, {'better' if gain >= 0 else 'worse'} by "
        f"{abs(gain):.4g}, of which the seeds leave {slack:.4g} in doubt; the two models alone "
        f"{ours[model.run_id]:.6g} against {theirs[champion.run_id]:.6g}"
    )
    passed = min(gain - slack, own) + margin >= -ROUNDING
    return Verdict(gate, passed, found, f"worse by at most {margin:g}")


def spread_of_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Half width of the one-sided interval of the difference of two means; 0 when unknown."""
    if len(first) < 2 or len(second) < 2:
        return 0.0
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return float(t.ppf(CONFIDENCE, freedom)) * math.sqrt(sum(parts))


def _mean(scores: Mapping[str, float]) -> str:
    values = list(scores.values())
    spread = f" +- {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.6g}{spread} ({counted(len(values), 'seed')})"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]

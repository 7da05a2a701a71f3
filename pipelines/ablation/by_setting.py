"""What each setting of a sweep is worth: a score at each of its values, all else equal.

A value is averaged over the combinations of other settings and seed that were measured with every
value of the setting. So a cell that failed takes its partners out, and no value looks good by its
company. This needs no seeds: where two settings vary, the arms repeat each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from ce_model.network_config import INPAINTING
from pipelines.ablation.comparison import Better

SETTINGS = ("strategy", "adversarial", "target", "layers")
"""What may differ between arms of one pretext, by its name in a cell."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of a setting."""

    setting: str
    value: str
    mean: float
    pairs: int
    """Combinations that it was measured with, as every other value was."""
    behind: int
    """In how many of them it is worse than the value with the best mean."""


def by_setting(cells: Sequence[Mapping[str, Any]], metric: str, better: Better) -> list[Level]:
    """Every value of every setting that varies; none where fewer than two do: the arms say it.

    Args:
        cells: of one number of steps.
        metric: name of a score.
        better: which direction is good.
    """
    measured = [
        cell
        for cell in cells
        if metric in cell["scores"] and cell.get("pretext", INPAINTING) == INPAINTING
    ]
    varied = [name for name in SETTINGS if len({cell.get(name) for cell in measured}) > 1]
    if len(varied) < 2:
        return []
    return [level for name in varied for level in _levels(measured, varied, name, metric, better)]


def _levels(
    cells: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    setting: str,
    metric: str,
    better: Better,
) -> list[Level]:
    others = [name for name in (*varied, "seed") if name != setting]
    combinations: dict[tuple[Any, ...], dict[Any, float]] = {}
    for cell in cells:
        combination = tuple(cell.get(name) for name in others)
        combinations.setdefault(combination, {})[cell.get(setting)] = cell["scores"][metric]
    values = list(dict.fromkeys(cell.get(setting) for cell in cells))
    whole = [found for found in combinations.values() if len(found) == len(values)]
    if not whole:
        return []
    sign = 1.0 if better == "lower" else -1.0
    means = {value: float(np.mean([found[value] for found in whole])) for value in values}
    best = min(means, key=lambda value: sign * means[value])
    return [
        Level(
            setting=setting,
            value=str(value),
            mean=means[value],
            pairs=len(whole),
            behind=sum(sign * found[value] > sign * found[best] for found in whole),
        )
        for value in sorted(values, key=lambda value: sign * means[value])
    ]


def in_words(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per setting, `target: hog 0.626, pixels 0.502 (behind in 4 of 4)`."""
    lines = []
    for setting, own in groupby(levels, key=itemgetter("setting")):
        best, *others = own
        shown = [f"{best['value']} {best['mean']:.4g}"]
        for level in others:
            behind = f"behind in {level['behind']} of {level['pairs']}"
            shown.append(f"{level['value']} {level['mean']:.4g} ({behind})")
        lines.append(f"{setting}: {', '.join(shown)}")
    return lines

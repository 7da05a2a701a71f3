"""Which arm is better, from scores per seed: means, paired differences, ranks with ties, verdict.

Every arm is trained with the same seeds, and a seed fixes the initial weights and the order of the
images, so seeds are blocks: differences are taken within a seed. The intervals are Tukey's for a
randomised block design: they hold for all pairs at once, with the residual spread pooled over the
arms (two arms: exactly the paired t interval). They assume that arms vary about equally: of 2,000
drawn sweeps of equal arms with 3 seeds, 4 to 5 % told some pair apart, but 8 % of those with 3 arms
of which one varies 4 times as much as the others, and 16 % with 6 arms and 5 times as much. An arm
ranks behind another only when their interval excludes zero; everything else is a tie.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.stats import studentized_range

from pipelines.errors import counted

CONFIDENCE = 0.95
Better = Literal["lower", "higher"]
Scores = Mapping[str, Mapping[int, float]]
"""Value of one metric by arm and seed."""


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm over its seeds."""

    arm: str
    mean: float
    std: float | None
    """Sample standard deviation; None for a single seed."""
    seeds: int
    rank: int | None
    """1 + the number of arms that are better beyond the seeds' spread; None: not compared."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """first - second, within seeds."""

    first: str
    second: str
    mean: float
    low: float
    high: float

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is said about one metric."""

    metric: str
    better: Better
    arms: tuple[ArmSummary, ...]
    """Best mean first; arms that are not compared come last."""
    differences: tuple[Difference, ...]
    verdict: str


def compare(scores: Scores, metric: str, better: Better) -> Comparison:
    """Compare the arms that have a value for every seed of the sweep.

    Args:
        scores: finite values by arm and seed.
        metric: its name, for the verdict.
        better: which direction is good.
    """
    seeds = sorted({seed for values in scores.values() for seed in values})
    complete = [arm for arm, values in scores.items() if len(values) == len(seeds)]
    differences = paired_differences({arm: scores[arm] for arm in complete})
    sign = 1.0 if better == "lower" else -1.0
    beaten = {
        arm: sum(_beats(other, arm, differences, sign) for other in complete if other != arm)
        for arm in complete
    }
    compared = bool(differences)
    arms = [
        _summary(arm, values, 1 + beaten[arm] if compared and arm in complete else None)
        for arm, values in scores.items()
        if values
    ]
    arms.sort(key=lambda arm: (arm.rank is None, sign * arm.mean))
    return Comparison(
        metric=metric,
        better=better,
        arms=tuple(arms),
        differences=differences,
        verdict=_verdict(metric, better, arms, differences, len(seeds)),
    )


def _summary(arm: str, values: Mapping[int, float], rank: int | None) -> ArmSummary:
    numbers = list(values.values())
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return ArmSummary(arm=arm, mean=float(np.mean(numbers)), std=std, seeds=len(numbers), rank=rank)


def paired_differences(scores: Scores) -> tuple[Difference, ...]:
    """All pairs with simultaneous intervals; none for one arm, one seed, or no spread at all."""
    arms = list(scores)
    seeds = sorted(scores[arms[0]]) if arms else []
    if len(arms) < 2 or len(seeds) < 2:
        return ()
    table = np.array([[scores[arm][seed] for seed in seeds] for arm in arms])
    means = table.mean(axis=1)
    residual = table - means[:, None] - table.mean(axis=0) + table.mean()
    freedom = (len(arms) - 1) * (len(seeds) - 1)
    noise = math.sqrt(float((residual**2).sum()) / freedom / len(seeds))
    if noise <= 1e-12 * float(np.abs(table).max()):
        return ()  # coarse scores can agree by chance; that is no evidence of certainty
    half = _quantile(len(arms), freedom) * noise
    return tuple(
        Difference(
            first=arms[a],
            second=arms[b],
            mean=float(means[a] - means[b]),
            low=float(means[a] - means[b] - half),
            high=float(means[a] - means[b] + half),
        )
        for a, b in itertools.combinations(range(len(arms)), 2)
    )


@cache
def _quantile(arms: int, freedom: int) -> float:
    """Of the studentised range; a numerical integral of a tenth of a second."""
    return float(studentized_range.ppf(CONFIDENCE, arms, freedom))


def _beats(arm: str, other: str, differences: tuple[Difference, ...], sign: float) -> bool:
    """Whether `arm` is better than `other` beyond doubt."""
    for found in differences:
        if (found.first, found.second) == (arm, other):
            return found.distinct and sign * found.mean < 0
        if (found.first, found.second) == (other, arm):
            return found.distinct and sign * found.mean > 0
    return False


def _verdict(
    metric: str,
    better: Better,
    arms: list[ArmSummary],
    differences: tuple[Difference, ...],
    seeds: int,
) -> str:
    compared = [arm for arm in arms if arm.rank is not None]
    left_out = [arm.arm for arm in arms if arm.seeds < seeds]
    lacking = f"; not compared for lack of seeds: {', '.join(left_out)}" if left_out else ""
    if not differences:
        return (
            f"No verdict on {metric}: it takes two arms with two common seeds whose differences "
            f"vary, and there are {counted(len(arms), 'arm')} and "
            f"{counted(seeds, 'seed')}{lacking}."
        )
    best = compared[0]
    tied = [arm for arm in compared[1:] if not _separate(best.arm, arm.arm, differences)]
    behind = [arm for arm in compared[1:] if arm not in tied]
    scope = f"{counted(seeds, 'seed')}, simultaneous {CONFIDENCE:.0%} intervals"
    if not tied:
        text = f"{_value(best)} has the best {metric} ({better} is better), before "
        text += f"{_names(behind)} beyond the spread of the seeds ({scope})"
    elif not behind:
        text = f"No arm differs significantly from the best on {metric} ({scope}): "
        text += ", ".join(_value(arm) for arm in compared)
    else:
        text = f"{_value(best)} leads on {metric} ({better} is better) but is tied with "
        text += f"{_names(tied)}; {_names(behind)} {'is' if len(behind) == 1 else 'are'} behind it "
        text += f"beyond the spread of the seeds ({scope})"
    return text + lacking + "."


def _separate(first: str, second: str, differences: tuple[Difference, ...]) -> bool:
    return any(
        found.distinct for found in differences if {found.first, found.second} == {first, second}
    )


def _value(arm: ArmSummary) -> str:
    return f"{arm.arm} ({with_spread(arm.mean, arm.std)})"


def with_spread(mean: float, std: float | None) -> str:
    """`0.4050 +- 0.0071`: two figures of the spread, and the mean to the same place."""
    if not std:
        return f"{mean:.4g}"
    places = max(1 - math.floor(math.log10(std)), 0)
    return f"{mean:.{places}f} +- {std:.{places}f}"


def _names(arms: list[ArmSummary]) -> str:
    return " and ".join(_value(arm) for arm in arms)

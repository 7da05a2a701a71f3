"""The verdict follows from the numbers, and says so when it cannot."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from pipelines.ablation import report
from pipelines.ablation.comparison import Scores, compare, paired_differences, with_spread


def table(values: dict[str, list[float]]) -> Scores:
    return {arm: dict(enumerate(numbers)) for arm, numbers in values.items()}


def test_two_arms_give_the_paired_t_interval() -> None:
    a, b = np.array([0.31, 0.35, 0.30, 0.33]), np.array([0.29, 0.32, 0.29, 0.30])
    (found,) = paired_differences(table({"a": list(a), "b": list(b)}))
    difference = a - b
    half = t.ppf(0.975, 3) * difference.std(ddof=1) / 2
    assert found.mean == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - half, difference.mean() + half)
    )


def test_intervals_of_equal_arms_all_hold_zero_in_95_of_100_sweeps() -> None:
    rng = np.random.default_rng(0)
    sweeps = 400
    false = 0
    for _ in range(sweeps):
        seeds = rng.normal(0, 5, 3)  # what a seed does to every arm must not matter
        scores = {f"arm{k}": list(seeds + rng.normal(0, 1, 3)) for k in range(4)}
        false += any(found.distinct for found in paired_differences(table(scores)))
    # 5 % of 400 = 20 with a standard deviation of 4.4
    assert 5 <= false <= 37


def test_a_shift_of_every_arm_within_a_seed_changes_no_interval() -> None:
    scores = {"a": [1.0, 2.0, 3.5], "b": [1.5, 2.1, 4.0], "c": [0.5, 2.5, 3.0]}
    shifted = {arm: [v + s for v, s in zip(values, (10, -4, 7), strict=True)]
               for arm, values in scores.items()}  # fmt: skip
    for before, after in zip(
        paired_differences(table(scores)), paired_differences(table(shifted)), strict=True
    ):
        assert (after.low, after.high) == pytest.approx((before.low, before.high))


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_clear_winner_is_named(better) -> None:  # type: ignore[no-untyped-def]
    scores = table({"good": [1.0, 1.1, 0.9], "bad": [9.0, 9.12, 8.9], "worse": [19, 19.1, 18.87]})
    found = compare(scores, "l2_hole", better)
    order = [arm.arm for arm in found.arms]
    assert order == (["good", "bad", "worse"] if better == "lower" else ["worse", "bad", "good"])
    assert [arm.rank for arm in found.arms] == [1, 2, 3]
    assert found.verdict.startswith(f"{order[0]} (")
    assert "tied" not in found.verdict


def test_what_the_seeds_cannot_tell_apart_shares_a_rank() -> None:
    scores = table({"a": [1.0, 1.4, 0.9], "b": [1.3, 1.0, 1.1], "far": [9.0, 9.3, 8.8]})
    found = compare(scores, "l2_hole", "lower")
    assert {arm.arm: arm.rank for arm in found.arms} == {"a": 1, "b": 1, "far": 3}
    assert "tied with" in found.verdict and "far" in found.verdict.split("tied with")[1]


def test_no_difference_at_all_is_said() -> None:
    scores = table({"a": [1.0, 1.4, 0.9], "b": [1.3, 1.0, 1.1]})
    verdict = compare(scores, "psnr", "higher").verdict
    assert verdict.startswith("No arm differs significantly from the best")


def test_an_arm_with_missing_seeds_is_shown_but_not_compared() -> None:
    scores = table({"a": [1.0, 1.1, 0.9], "b": [9.0, 9.12, 8.9], "broken": [0.1, 0.1]})
    found = compare(scores, "l2_hole", "lower")
    assert [(arm.arm, arm.rank) for arm in found.arms] == [("a", 1), ("b", 2), ("broken", None)]
    assert "not compared for lack of seeds: broken" in found.verdict


def test_no_verdict_names_the_arms_that_lack_seeds() -> None:
    scores = table({"a": [1.0, 1.1, 0.9], "b": [9.0, 9.12], "c": [9.4, 9.7]})
    found = compare(scores, "l2_hole", "lower")
    assert found.verdict.startswith("No verdict")
    assert found.verdict.endswith("3 seeds; not compared for lack of seeds: b, c.")


@pytest.mark.parametrize("scores", [{}, {"a": [1.0, 2.0]}, {"a": [1.0], "b": [2.0]}])
def test_too_little_gives_no_verdict(scores: dict[str, list[float]]) -> None:
    assert compare(table(scores), "l2_hole", "lower").verdict.startswith("No verdict")


def test_coarse_scores_that_agree_by_chance_are_no_certainty() -> None:
    scores = table({"a": [0.50, 0.65], "b": [0.52, 0.67]})  # both differences are 0.02
    assert compare(scores, "accuracy", "higher").verdict.startswith("No verdict")


@pytest.mark.parametrize(
    ("mean", "std", "shown"),
    [
        (0.405, 0.00707, "0.4050 +- 0.0071"),
        (12.2451, 0.33, "12.25 +- 0.33"),
        (251.3, 31.4, "251 +- 31"),
        (0.0635424, 0.0000257, "0.063542 +- 0.000026"),
        (0.51234, None, "0.5123"),
        (0.51234, 0.0, "0.5123"),
    ],
)
def test_a_mean_ends_where_its_spread_does(mean: float, std: float | None, shown: str) -> None:
    assert with_spread(mean, std) == shown


def test_the_report_shows_the_verdict_first_and_every_score_once() -> None:
    values = {
        "linear/pool5/accuracy": {"a": [0.40, 0.42], "b": [0.30, 0.33]},
        "linear/conv1/accuracy": {"a": [0.20, 0.21], "b": [0.22, 0.235]},
        "inpainting/central/L2": {"a": [0.05, 0.06]},
    }
    better = {"linear": "higher", "inpainting": "lower"}
    compared = {
        name: asdict(compare(table(scores), name, better[name.split("/")[0]]))  # type: ignore[arg-type]
        for name, scores in values.items()
    }
    cells: list[dict[str, Any]] = [
        {
            "arm": arm, "seed": seed, "steps": 10, "status": "done", "curve": [[5, 9.0], [10, 9.5]],
            "scores": {name: scores[arm][seed] for name, scores in values.items() if arm in scores},
            "seconds": 1.0, "cpu_hours": 0.1, "gpu_hours": 0.0, "restarts": 0,
            "tracking_run_id": None, "error": None,
        }
        for arm in ("a", "b") for seed in (0, 1)
    ]  # fmt: skip
    decisive = "linear/pool5/accuracy"
    found = {
        "arms": ["a", "b"], "seeds": 2, "steps": 10, "rungs": [], "metric": decisive,
        "dataset_fingerprint": "0" * 64, "code": "1" * 40, "comparisons": compared, "cells": cells,
        "verdict": compared[decisive]["verdict"],
    }  # fmt: skip
    page = report.page(found, {"a": b"png"})
    places = [
        page.index(part)
        for part in ("a (0.410 &plusmn; 0.014", "Learning curves", "All scores", "Cells")
    ]
    assert places == sorted(places)
    assert "<td>conv1/accuracy</td><td>higher</td><td>0.2050 &plusmn; 0.0071 (1)</td>" in page
    assert (
        "<td>central/L2</td><td>lower</td><td>0.0550 &plusmn; 0.0071 (-)</td><td>n/a</td>" in page
    )
    assert page.count("data:image/png") == 3  # the seeds, the curves, the panel


def test_curves_of_another_target_have_axes_of_their_own() -> None:
    cells = [{"arm": "a", "target": "hog"}, {"arm": "b", "target": "pixels"},
             {"arm": "c", "target": "hog"}]  # fmt: skip
    found = {"arms": ["a", "b", "c"], "cells": cells, "curve": "validation/target_error"}
    assert report._comparable(found) == {"; target hog": ["a", "c"], "; target pixels": ["b"]}
    assert report._comparable(found | {"curve": report.PSNR}) == {"": ["a", "b", "c"]}

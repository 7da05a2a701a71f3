"""What a setting is worth is measured between cells that differ in it alone."""

import itertools
from typing import Any

import pytest

from pipelines.ablation import report
from pipelines.ablation.by_setting import by_setting, in_words

WORTH = {"hog": 0.6, "pixels": 0.5, "masked": 0.01, "dense": 0.0, "grid_60": 0.0, "grid_75": 0.0}


def cell(strategy: str, target: str | None, layers: str, seed: int = 0) -> dict[str, Any]:
    score = sum(WORTH.get(str(name), 0.0) for name in (strategy, target, layers)) + 0.1 * seed
    return {
        "strategy": strategy, "adversarial": 0.0, "target": target, "layers": layers, "seed": seed,
        "pretext": "inpainting", "scores": {"accuracy": score},
    }  # fmt: skip


def factorial(seeds: int = 1) -> list[dict[str, Any]]:
    every = itertools.product(("grid_60", "grid_75"), ("pixels", "hog"), ("masked", "dense"))
    return [cell(*settings, seed) for settings in every for seed in range(seeds)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_each_value_has_its_mean_and_in_how_many_pairs_it_is_behind(seeds: int) -> None:
    levels = by_setting(factorial(seeds), "accuracy", "higher")
    found = {(level.setting, level.value): level for level in levels}
    hog, pixels = found["target", "hog"], found["target", "pixels"]
    assert hog.mean - pixels.mean == pytest.approx(0.1)
    assert (pixels.pairs, pixels.behind, hog.behind) == (4 * seeds, 4 * seeds, 0)
    assert found["layers", "masked"].mean - found["layers", "dense"].mean == pytest.approx(0.01)
    assert found["strategy", "grid_75"].behind == 0  # equal is not behind
    assert [level.value for level in levels if level.setting == "target"] == ["hog", "pixels"]
    assert not {level.setting for level in levels} - {"strategy", "target", "layers"}


def test_of_an_error_the_lower_is_better() -> None:
    levels = by_setting(factorial(), "accuracy", "lower")
    assert next(level.value for level in levels if level.setting == "target") == "pixels"


def test_a_cell_that_failed_takes_its_partners_out() -> None:
    cells = factorial()
    (gone,) = (
        c for c in cells
        if (c["strategy"], c["target"], c["layers"]) == ("grid_60", "hog", "masked")
    )  # fmt: skip
    gone["scores"] = {}
    levels = by_setting(cells, "accuracy", "higher")
    assert {level.pairs for level in levels} == {3}
    hog, pixels = (level for level in levels if level.setting == "target")
    assert hog.mean - pixels.mean == pytest.approx(0.1)  # the mean of all would be 0.0975 apart


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [cell("grid_60", None, "masked"), cell("grid_75", None, "masked")],  # one setting: the arms
        [cell("grid_60", "hog", "masked"), cell("grid_75", "pixels", "masked")],  # no pair
    ],
)
def test_nothing_is_said_without_pairs(cells: list[dict[str, Any]]) -> None:
    assert by_setting(cells, "accuracy", "higher") == []


def test_a_sibling_pretext_has_no_such_settings() -> None:
    sibling = cell("grid_60", None, "dense") | {"pretext": "exemplar"}
    assert by_setting([*factorial(), sibling], "accuracy", "higher") == by_setting(
        factorial(), "accuracy", "higher"
    )


def test_a_line_and_a_table_say_it() -> None:
    levels = [vars(level) for level in by_setting(factorial(), "accuracy", "higher")]
    assert "target: hog 0.605, pixels 0.505 (behind in 4 of 4)" in in_words(levels)
    page = "".join(report._by_setting({"settings": {"accuracy": levels}}))
    assert "What each setting is worth" in page and "0.505 (4 of 4)" in page
    assert "".join(report._by_setting({})) == ""  # a sweep of an earlier version

"""What evidence says of a model, and what a gate makes of it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.promotion.gates import Candidate, Gates, Verdict, expand, quality, read_gates
from pipelines.tracking import scores

PSNR = "inpainting/central/hole/128/PSNR"
LINEAR = "linear/conv5/accuracy"


def candidate(run_id: str, psnr: dict[str, float], **more: Any) -> Candidate:
    base = Candidate(
        run_id=run_id,
        status="FINISHED",
        logged_sha256="a",
        load_problem="",
        evaluated_sha256=frozenset("a"),
        scores={PSNR: psnr},
        measured={PSNR: "equal", LINEAR: "equal"},
        tasks=frozenset({"inpainting"}),
        seeds=len(psnr),
        alarms={},
        dataset_fingerprint="d",
        code="c",
        unsafe_files=(),
    )
    return replace(base, **more)


def verdict(found: list[Verdict], gate: str) -> Verdict:
    (one,) = (each for each in found if each.gate.startswith(gate))
    return one


def test_seeds_that_measured_something_else_do_not_count() -> None:
    model = candidate("m", {"m": 15.0}, seeds=3)
    model = replace(model, scores={**model.scores, LINEAR: {"m": 0.5, "n": 0.5, "o": 0.5}})
    three = Gates(min_seeds=3, thresholds={PSNR: {"min": 12.0}})
    assert not verdict(quality(model, None, three), "seeds").passed
    assert verdict(quality(model, None, replace(three, thresholds={})), "seeds").passed
    assert verdict(quality(model, None, Gates(thresholds={PSNR: {"min": 1.0}})), "seeds").passed


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        ({"m": 14.9, "n": 16.1, "o": 16.0}, {"c": 15.5}, False),
        ({"m": 15.4, "n": 16.1, "o": 16.0}, {"c": 15.5}, True),
        ({"m": 14.6, "n": 17.1, "o": 17.2, "p": 17.0}, {"c": 15.5, "d": 15.4, "e": 15.45}, False),
        ({"m": 16.0}, {"d": 15.0}, False),  # the champion itself was not measured
    ],
)
def test_the_model_that_would_be_served_keeps_the_margin_itself(
    ours: dict[str, float], theirs: dict[str, float], passed: bool
) -> None:
    found = quality(candidate("m", ours), candidate("c", theirs), Gates(margins={PSNR: 0.25}))
    assert verdict(found, "not worse").passed is passed


@pytest.mark.parametrize("right", range(20))
def test_worse_by_exactly_the_margin_is_allowed_and_by_one_image_more_is_not(right: int) -> None:
    champion, gates = candidate("c", {"c": (right + 1) / 20}), Gates(margins={PSNR: 0.05})
    for lost, passed in ((0, True), (1, False)):  # of 2,000 images
        model = candidate("m", {"m": right / 20 - lost / 2000})
        assert verdict(quality(model, champion, gates), "not worse").passed is passed


def report(value: float, data: str, key: str, at: str = "", title: str = "") -> dict[str, Any]:
    score = {"mean": value, "std": None, "values": [value]}
    row = {"model": "m", "method": "this model", "holes": "central", "region": "hole",
           "hidden": "any", "side": "128", "PSNR": score}  # fmt: skip
    section = {"task": "inpainting", "title": title or f"inpainting, {data}", "data": data,
               "data_key": key, "rows": [row], "notes": {}}  # fmt: skip
    return {"seeds": [0], "precision": "fp32", "sections": [section], "at": at,
            "models": [{"name": "m", "sha256": "a", "run_id": "r"}]}  # fmt: skip


def test_the_newest_report_counts_in_whatever_order_they_are_listed() -> None:
    old, new = report(19.0, "easy", "1", "2026-01-01"), report(11.0, "hard", "2", "2026-01-02")
    for order in ([old, new], [new, old]):
        assert scores.scores_of(order, "a").values == {PSNR: 11.0}


def test_data_of_one_name_are_told_apart_by_what_they_are() -> None:
    first, second = (report(12.0, f"/{place}/photos", place) for place in ("hard", "easy"))
    keys = {scores.scores_of([each], "a").measured[PSNR] for each in (first, second)}
    assert len(keys) == 2


def test_one_task_on_two_data_has_two_names() -> None:
    both = report(12.0, "hard", "1")
    both["sections"] += report(19.0, "easy", "2")["sections"]
    assert scores.scores_of([both], "a").values == {
        "inpainting/hard/central/hole/128/PSNR": 12.0,
        "inpainting/easy/central/hole/128/PSNR": 19.0,
    }


def named(score: str, strategy: str) -> str:
    return f"inpainting/{strategy}/hole/{score}"


@pytest.mark.parametrize(
    ("gain", "telea", "passed"), [(0.0, 15.0, True), (0.5, 14.5, True), (0.5, 14.6, False)]
)
def test_a_gate_can_demand_to_be_better_than_a_method(
    gain: float, telea: float, passed: bool
) -> None:
    model = candidate("m", {"m": 15.0}, baselines={PSNR: {"Telea": telea}})
    found = verdict(quality(model, None, Gates(baselines={PSNR: {"Telea": gain}})), "better")
    assert found.passed is passed
    assert f"15 against {telea:g}" in found.found


def test_lower_is_better_where_it_is() -> None:
    name = named("128/L1", "central")
    model = candidate("m", {}, scores={name: {"m": 0.1}}, baselines={name: {"Telea": 0.2}})
    assert verdict(quality(model, None, Gates(baselines={name: {"Telea": 0.1}})), "better").passed


def test_a_method_that_the_evaluation_left_out_is_not_beaten() -> None:
    found = quality(candidate("m", {"m": 15.0}), None, Gates(baselines={PSNR: {"Telea": 0}}))
    assert not verdict(found, "better").passed
    assert verdict(found, "better").found == "not measured for Telea"


@pytest.mark.parametrize(
    ("strategy", "side"), [("central", "128"), ("free_form", "128"), ("random_region", "227")]
)
def test_the_default_gates_look_at_the_holes_a_model_was_trained_with(
    strategy: str, side: str
) -> None:
    """Models of random holes and of other sides can pass, and none that trails Telea's method."""
    name, error = named(f"{side}/PSNR", strategy), named(f"{side}/L1", strategy)
    others = {named("128/PSNR", "random_block"): {"m": 9.0},  # measured, too
              named(f"{side}/PSNR", "random_region_shapes"): {"m": 9.0},
              named(f"0% to 10%/{side}/PSNR", strategy): {"m": 9.0}}  # fmt: skip
    model = candidate(
        "m", {}, strategy=strategy, measured={name: "equal", error: "equal"},
        scores={name: {"m": 15.0}, error: {"m": 0.1}, **others},
        baselines={name: {"Telea": 14.9, "mean colour": 12.0}},
    )  # fmt: skip
    champion = replace(model, run_id="c", scores={name: {"c": 15.1}, error: {"c": 0.1}})
    found = quality(model, champion, read_gates(None))
    assert all(each.passed for each in found), found
    assert sum("Telea" in each.gate for each in found) == 1
    worse = replace(model, baselines={name: {"Telea": 15.1, "mean colour": 12.0}})
    refused = [each for each in quality(worse, champion, read_gates(None)) if not each.passed]
    assert [each.gate for each in refused] == [f"better than Telea on {name}"]


def test_holes_in_a_ring_are_those_of_their_strategy() -> None:
    ring = named("128/PSNR", "central in a ring of 7 px")
    model = candidate("m", {}, strategy="central", scores={ring: {"m": 15.0}})
    assert expand("inpainting/{strategy}/hole/*/PSNR", model) == [ring]
    assert expand("inpainting/{strategy}/hole/*/PSNR", replace(model, strategy="")) == [ring]


def test_a_name_that_nothing_was_measured_of_fails_by_itself() -> None:
    found = quality(candidate("m", {"m": 15.0}, strategy="free_form"), None, read_gates(None))
    refused = [each for each in found if not each.passed]
    assert {each.gate.rpartition(" ")[2] for each in refused} == {
        "inpainting/free_form/hole/*/PSNR"
    }


def test_baselines_are_those_of_the_same_evaluation() -> None:
    measured = report(15.0, "photos", "1")
    (section,) = measured["sections"]
    own = section["rows"][0]
    section["rows"] += [
        {**own, "model": "", "method": "Telea", "PSNR": {**own["PSNR"], "mean": 14.0}},
        {**own, "model": "random", "PSNR": {**own["PSNR"], "mean": 11.0}},
        {**own, "model": "other", "PSNR": {**own["PSNR"], "mean": 16.0}},
    ]
    measured["models"] += [
        {"name": "random", "sha256": "", "run_id": None, "kind": "random"},
        {"name": "other", "sha256": "b", "run_id": "o", "kind": "model"},
    ]
    assert scores.scores_of([measured], "a").baselines == {PSNR: {"Telea": 14.0, "random": 11.0}}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("baselines: {a/PSNR: 0.5}", "must be like {Telea: 0.5}"),
        ("baselines: {a/PSNR: {Telea: much}}", "is 'much'; it must be a number"),
        ("baseline: {}", "did you mean 'baselines'?"),
    ],
)
def test_a_mistake_in_baselines_is_told(written: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(written)
    with pytest.raises(UserError, match=re.escape(message)):
        read_gates(str(tmp_path / "g.yaml"))

"""A graph runs what is missing, in order, and nothing twice."""

import io
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from pipelines import storage
from pipelines.errors import UserError
from pipelines.runtime.cluster import Resources
from pipelines.workflow import graph
from pipelines.workflow.execute import _run_and_commit, execute, seconds_left
from pipelines.workflow.graph import Stage, StageOutcome

TWO_CPUS = Resources(2, 0)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see this folder


def work(inputs: Mapping[str, Any], *, log: str, name: str, value: int) -> dict[str, Any]:
    """Add a value to what came before and leave a trace of the call."""
    with Path(log, name).open("a") as file:
        file.write(f"{time.time()}\n")
    return {"sum": value + sum(result["sum"] for result in inputs.values())}


def stage(log: Path, name: str, value: int = 1, needs: tuple[str, ...] = ()) -> Stage:
    run = partial(work, log=str(log), name=name, value=value)
    return Stage(name=name, kind=name, run=run, settings={"value": value}, needs=needs)


def calls(log: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in sorted(log.iterdir())}


def diamond(log: Path, right: int = 1) -> list[Stage]:
    return [
        stage(log, "last", 1, ("left", "right")),
        stage(log, "left", 1, ("first",)),
        stage(log, "right", right, ("first",)),
        stage(log, "first"),
    ]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def run(stages: list[Stage], store: Path, **options: Any) -> dict[str, StageOutcome]:
    options = {"concurrency": 2, "console": Console(file=io.StringIO()), **options}
    return execute(stages, str(store), TWO_CPUS, **options)


def test_a_rerun_runs_only_what_a_change_reaches(ray_cluster: None, tmp_path: Path, log: Path):
    first = run(diamond(log), tmp_path)
    assert first["last"].result == {"sum": 5}
    assert calls(log) == {"first": 1, "last": 1, "left": 1, "right": 1}
    again = run(diamond(log), tmp_path)
    assert {outcome.status for outcome in again.values()} == {"skipped"}
    changed = run(diamond(log, right=10), tmp_path)
    assert changed["last"].result == {"sum": 14}
    assert calls(log) == {"first": 1, "last": 2, "left": 1, "right": 2}


def test_the_plan_names_what_changed_and_runs_nothing(ray_cluster: None, tmp_path: Path, log: Path):
    never = graph.plan(diamond(log), str(tmp_path))
    assert never[0].name == "first" and never[-1].name == "last"
    assert {p.why for p in never} == {"never finished in this store"}
    run(diamond(log), tmp_path)
    after = {p.name: p for p in graph.plan(diamond(log, right=10), str(tmp_path))}
    assert not after["first"].runs and not after["left"].runs
    assert after["right"].runs and after["right"].why == "value 1 -> 10"
    assert after["last"].runs and after["last"].why == "input right changed"
    assert calls(log) == {"first": 1, "last": 1, "left": 1, "right": 1}


def test_the_plan_names_no_list_that_is_the_same(ray_cluster: None, tmp_path: Path, log: Path):
    settings = {"value": 1, "sides": (64, 128)}  # a tuple here, a list in the store
    one = replace(stage(log, "first"), settings=settings)
    run([one], tmp_path)
    (planned,) = graph.plan([replace(one, settings=settings | {"value": 2})], str(tmp_path))
    assert planned.why == "value 1 -> 2"


def late_at_first(inputs: Mapping[str, Any], *, log: str, name: str) -> dict[str, Any]:
    """MLflow is away at the first call."""
    found = work(inputs, log=log, name=name, value=1)
    return {**found, "delivered": len(Path(log, name).read_text().splitlines()) > 1}


def test_what_mlflow_lacks_is_not_final_and_runs_again(
    ray_cluster: None, tmp_path: Path, log: Path
):
    stages = [
        replace(stage(log, "first"), run=partial(late_at_first, log=str(log), name="first")),
        stage(log, "alone"),
        stage(log, "last", needs=("first", "alone")),
    ]
    late = run(stages, tmp_path)
    assert {outcome.status for outcome in late.values()} == {"done"}
    assert [name for name, outcome in late.items() if outcome.final] == ["alone"]
    assert late["last"].line.endswith("MLflow was away; rerun the same command to deliver the rest")
    assert [p.name for p in graph.plan(stages, str(tmp_path)) if p.runs] == ["first", "last"]
    again = run(stages, tmp_path)
    assert all(outcome.final for outcome in again.values())
    assert {o.status for o in run(stages, tmp_path).values()} == {"skipped"}
    assert calls(log) == {"alone": 1, "first": 2, "last": 2}


def fail(inputs: Mapping[str, Any], *, error: Exception) -> dict[str, Any]:
    raise error


def test_a_failed_stage_is_named_and_leaves_the_others(
    ray_cluster: None, tmp_path: Path, log: Path
):
    stages = diamond(log)
    stages[1] = Stage(
        name="left", kind="left", run=partial(fail, error=UserError("left is 3; it must be 4")),
        needs=("first",),
    )  # fmt: skip
    outcomes = run(stages, tmp_path)
    assert outcomes["left"].status == "failed"
    assert outcomes["left"].error == "left is 3; it must be 4"
    assert outcomes["right"].status == "done"
    assert outcomes["last"].status == "blocked" and outcomes["last"].error == "needs left"
    mended = run(diamond(log), tmp_path)
    assert mended["last"].status == "done"
    assert calls(log) == {"first": 1, "last": 1, "left": 1, "right": 1}


def crash_at_first(inputs: Mapping[str, Any], *, log: str, how: str) -> dict[str, Any]:
    trace = Path(log, how)
    if not trace.exists():
        trace.write_text("crashed")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the disk went away")
    return {}


def test_a_crash_is_tried_again_and_a_users_fault_is_not(
    ray_cluster: None, tmp_path: Path, log: Path
):
    stages = [
        Stage(name=how, kind=how, run=partial(crash_at_first, log=str(log), how=how))
        for how in ("killed", "raised")
    ]
    outcomes = run(stages, tmp_path, attempts=2)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    once = Stage(name="once", kind="once", run=partial(crash_at_first, log=str(log), how="once"))
    failed = run([once], tmp_path)["once"]
    assert failed.status == "failed" and "the disk went away" in str(failed.error)


def meet(inputs: Mapping[str, Any], *, log: str, name: str) -> dict[str, Any]:
    """Ends only when the other one runs at the same time."""
    Path(log, name).touch()
    deadline = time.time() + 30
    while len(list(Path(log).iterdir())) < 2:
        if time.time() > deadline:
            raise TimeoutError("alone")
        time.sleep(0.05)
    return {}


def test_independent_stages_run_at_once(ray_cluster: None, tmp_path: Path, log: Path):
    stages = [
        Stage(name=name, kind=name, run=partial(meet, log=str(log), name=name)) for name in "ab"
    ]
    assert {o.status for o in run(stages, tmp_path).values()} == {"done"}


def test_until_keeps_a_stage_and_its_needs(log: Path):
    assert {s.name for s in graph.until(diamond(log), "left")} == {"first", "left"}
    with pytest.raises(UserError, match="must be one of last, left, right, first"):
        graph.until(diamond(log), "lfet")


def test_a_circle_and_a_double_name_are_refused(log: Path):
    circle = [stage(log, "a", needs=("b",)), stage(log, "b", needs=("a",))]
    with pytest.raises(UserError, match="a needs b needs a"):
        graph.keys(circle)
    with pytest.raises(UserError, match="two stages of one name"):
        graph.keys([stage(log, "a"), stage(log, "a")])


def test_two_runs_at_once_commit_one_result(ray_cluster: None, tmp_path: Path, log: Path):
    one = stage(log, "first")
    record = {**graph.identity_of(one, {}), "name": "first", "key": graph.keys([one])["first"]}
    first = _run_and_commit(one, {}, dict(record), str(tmp_path), TWO_CPUS)
    second = _run_and_commit(one, {}, dict(record), str(tmp_path), TWO_CPUS)
    assert first == second  # the record of the first, not a second one with other times


def test_cost_counts_the_devices_that_were_kept_busy(ray_cluster: None, tmp_path: Path, log: Path):
    stages = [stage(log, "all"), graph.Stage(name="two", kind="two", run=slow, workers=2)]
    quiet = Console(file=io.StringIO())
    on_gpus = execute(stages, str(tmp_path), Resources(16, 2), concurrency=2, console=quiet)
    two = on_gpus["two"]
    assert two.cpu_hours == 0 and two.gpu_hours == pytest.approx(two.seconds * 2 / 3600)
    assert on_gpus["all"].cpu_hours == pytest.approx(on_gpus["all"].seconds * 16 / 3600)
    assert storage.read_json(graph.commit_uri(str(tmp_path), two.key))["name"] == "two"


def slow(inputs: Mapping[str, Any]) -> dict[str, Any]:
    time.sleep(0.1)
    return {}


def test_the_time_left_follows_from_what_ran_of_each_kind(log: Path) -> None:
    stages = [replace(stage(log, f"{kind} {n}"), kind=kind) for n in range(3) for kind in "ab"]

    def ended(name: str, seconds: float, status: graph.Status = "done") -> StageOutcome:
        return StageOutcome(name=name, key="", status=status, seconds=seconds)

    outcomes = {"a 0": ended("a 0", 100.0)}
    assert seconds_left(stages, outcomes, 100.0) == float("inf")  # b was never run
    outcomes |= {"b 0": ended("b 0", 10.0), "b 1": ended("b 1", 99.0, "skipped")}
    # a 1, a 2 and b 2 are to come
    assert seconds_left(stages, outcomes, 110.0) == pytest.approx(210.0)
    assert seconds_left(stages, outcomes, 55.0) == pytest.approx(105.0)  # two at once
    whole = {each.name: ended(each.name, 0.0, "skipped") for each in stages}
    assert seconds_left(stages, whole, 0.5) == 0


def test_every_end_is_a_line_with_its_reason(ray_cluster: None, tmp_path: Path, log: Path) -> None:
    shown = io.StringIO()
    broken = Stage(name="broken", kind="x", run=partial(fail, error=UserError("x is 3")))
    chain = [broken, stage(log, "after", needs=("broken",)), stage(log, "alone")]
    run(chain, tmp_path / "store", console=Console(file=shown, width=60))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 5 and lines[-1] == "stages 3/3"
    assert lines[0] == "stages: 1 x, 1 after, 1 alone"
    ends = {line.partition("] ")[2] for line in lines[1:4]}
    assert ends == {"broken: failed: x is 3", "after: blocked: needs broken", "alone: done in 0 s"}


def test_the_results_of_a_moved_store_name_its_places_of_today(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    result = {"data": f"{old}/prepare/d", "all": [f"{old}", f"{old}er/x", 3], "n": None}
    record = {"key": "k" * 64, "store": str(old), "result": result}
    storage.publish_json(graph.commit_uri(str(old), "k" * 64), record)
    found = graph.read_commit(str(old), "k" * 64)
    assert found is not None and found["result"] == result
    old.rename(new)
    found = graph.read_commit(str(new), "k" * 64)
    assert found is not None
    assert found["result"] == {
        "data": f"{new}/prepare/d", "all": [f"{new}", f"{old}er/x", 3], "n": None
    }  # fmt: skip

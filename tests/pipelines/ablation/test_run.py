"""A whole sweep with successive halving: what it compares, logs, and does not do twice."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import class_folders, noise_image, write_images
from rich.console import Console

from pipelines import storage
from pipelines.ablation import cells, publish, sweep
from pipelines.ablation.cells import cell_stages, evaluation_config, measure, train
from pipelines.ablation.config import AblateConfig, Arm, Cell
from pipelines.ablation.sweep import better_half, run_sweep, sweep_key
from pipelines.errors import UserError
from pipelines.evaluation import encoders
from pipelines.evaluation.settings import InpaintingSettings, ProbeSettings
from pipelines.pretrain import key as learning
from pipelines.pretrain.config import PretrainConfig
from pipelines.tracking import registry
from pipelines.tracking.client import client, tracking_uri
from pipelines.tracking.runs import RunSpec, experiment_id
from pipelines.workflow import graph
from pipelines.workflow import stages as workflow_stages


def config(source: str, store: Path) -> AblateConfig:
    return AblateConfig(
        strategies=("central",),
        adversarial=(0.0, 0.001, 0.01),
        seeds=2,
        source=source,
        store=str(store),
        tasks=("inpainting",),
        inpainting=InpaintingSettings(
            strategies=("central",), images=8, database=8, panel=2, baselines=("mean colour",)
        ),
        pretrain=PretrainConfig(
            preset="inpaint", bottleneck=32, steps=6, batch_size=8, validation_images=4
        ),
        rungs=(3,),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_halving_compares_equal_budgets_only_and_a_rerun_trains_nothing(
    dataset_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config(dataset_uri, tmp_path)
    found = run_sweep(wanted)
    (rung,) = found["rungs"]
    assert rung["steps"] == 3 and len(rung["kept"]) == 2
    by_steps = {steps: [c for c in found["cells"] if c["steps"] == steps] for steps in (3, 6)}
    assert len(by_steps[3]) == 6
    assert {cell["arm"] for cell in by_steps[6]} == set(rung["kept"])
    assert len(by_steps[6]) == 4
    compared = found["comparisons"][found["metric"]]
    assert {arm["arm"] for arm in compared["arms"]} == set(rung["kept"])
    assert found["verdict"] == compared["verdict"]
    assert all(cell["status"] == "done" and cell["seconds"] > 0 for cell in found["cells"])

    server = client(tracking_uri(None, wanted.store))
    experiment = experiment_id(server, wanted.experiment, wanted.store)
    (parent,) = server.search_runs([experiment], "tags.stage = 'ablation'")
    for name in ("verdict", "mlflow.note.content"):
        assert parent.data.tags[name] == found["verdict"]
    nested = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert len(server.search_runs([experiment], nested)) == len(found["cells"])

    page = storage.join(wanted.store, "ablate", found["key"][:16], "ablation.html")
    shown = found["verdict"].replace(" +- ", " &plusmn; ")
    assert shown.encode() in storage.read_bytes(page)
    capsys.readouterr()
    again = run_sweep(wanted)
    assert capsys.readouterr().err.count(": skipped") == 2 * len(found["cells"])
    assert again["comparisons"] == found["comparisons"]


@pytest.mark.parametrize("missing", [None, "a", "b", "c", "d"])
@pytest.mark.parametrize("metric", ["linear/pool5/accuracy", "inpainting/L2"])
def test_a_failed_cell_does_not_change_which_arms_go_on(missing: str | None, metric: str) -> None:
    """Seeds move all arms further than the arms lie apart; seed 0 is the worst."""
    sign = -1 if metric.endswith("L2") else 1
    arms = {name: Arm("central", weight / 10) for weight, name in enumerate("abcd")}
    results = [
        {"arm": str(arm), "seed": seed, "scores": {metric: sign * (10 * seed + skill)}}
        for skill, arm in enumerate(arms.values())
        for seed in range(3)
    ]
    for cell in results:
        if missing and cell["arm"] == str(arms[missing]) and cell["seed"] == 0:
            cell["scores"] = {}
    assert better_half(results, list(arms.values()), metric) == [arms["c"], arms["d"]]


def test_halving_without_a_common_seed_takes_what_there_is_and_no_score_goes_last() -> None:
    arms = [Arm("central", weight) for weight in (0.0, 0.1, 0.2)]
    results = [
        {"arm": str(arms[0]), "seed": 0, "scores": {}},
        {"arm": str(arms[1]), "seed": 0, "scores": {"accuracy": 0.1}},
        {"arm": str(arms[2]), "seed": 1, "scores": {"accuracy": 0.2}},
    ]
    assert better_half(results, arms, "accuracy") == arms[1:]


def test_what_changes_a_sweep_changes_its_key(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = config(dataset_uri, tmp_path)
    keys = [sweep_key(usual, dataset_uri)]
    assert sweep_key(replace(usual, store="elsewhere"), dataset_uri) == keys[0]
    write_images(tmp_path / "more" / "train", {"apple": 2, "pear": 2})
    write_images(tmp_path / "more" / "val", {"apple": 1, "pear": 1}, first=100)
    more = replace(usual, data=(str(tmp_path / "more"),))
    keys.append(sweep_key(more, dataset_uri))
    for stage in (learning, cells):
        monkeypatch.setattr(stage, "KEY_VERSION", stage.KEY_VERSION + 1)
        keys.append(sweep_key(usual, dataset_uri))
    assert len(set(keys)) == 4


@pytest.mark.parametrize("hours", [0.0, -1.0, math.inf, math.nan])
def test_a_period_that_never_ends_or_is_none_is_refused(tmp_path: Path, hours: float) -> None:
    with pytest.raises(ValueError, match=r"every_hours is .*; it must be above 0 and finite"):
        replace(config("photos", tmp_path), every_hours=hours)


def test_a_task_without_data_is_refused_before_any_training(
    dataset_uri: str, tmp_path: Path
) -> None:
    wanted = replace(config(dataset_uri, tmp_path), tasks=("detection",))
    with pytest.raises(UserError, match="task 'detection' has no data"):
        cell_stages(wanted, Cell(Arm("central", 0.0), 0, 6), dataset_uri)


def test_what_cannot_be_measured_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serially: None
) -> None:
    for number in range(6):
        noise_image(tmp_path / "flat" / f"{number}.png", seed=number)
    wanted = replace(config(str(tmp_path / "flat"), tmp_path), adversarial=(0.0,), seeds=1)
    monkeypatch.setattr(sweep, "execute", None)  # would fail here
    with pytest.raises(UserError, match="task 'linear' needs labels of at least 2 classes"):
        run_sweep(replace(wanted, tasks=("inpainting", "linear")))
    labelled = str(class_folders(tmp_path / "labelled"))
    with pytest.raises(UserError, match="task 'knn' needs labels"):
        run_sweep(replace(wanted, tasks=("knn",), data=(labelled,)))

    for changes in ({"metric": "knn/pool5/accuracy"}, {"tasks": ("retrieval",)}):
        with pytest.raises(UserError, match=r"metric is .*, a score of the task .*; tasks has"):
            run_sweep(replace(wanted, **changes))

    monkeypatch.setattr(sweep, "_dataset", None)  # a network is refused before this, even
    for tasks, changes in (
        (("inpainting", "detection"), {}),
        (("segmentation",), {}),
        (("linear",), {"frozen": ProbeSettings(side=128)}),
    ):
        with pytest.raises(UserError, match=r"preset alexnet.*'central-0' is of preset inpaint"):
            run_sweep(replace(wanted, tasks=tasks, **changes))


def test_cells_that_are_compared_are_measured_in_one_precision(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = "bf16" if encoders.resolve_precision("auto") == torch.bfloat16 else "fp32"
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: there != "bf16")  # in this process alone
    wanted: list[graph.Stage] = []

    def listed(stages: list[graph.Stage], *_: object, **__: object) -> None:
        wanted.extend(stages)
        raise UserError("that is enough")

    monkeypatch.setattr(sweep, "execute", listed)
    for precision in (None, "fp32"):
        with pytest.raises(UserError, match="enough"):
            run_sweep(replace(config(dataset_uri, tmp_path), precision=precision))
    found = [stage.settings["precision"] for stage in wanted if stage.kind == "evaluate"]
    assert found == 6 * [there] + 6 * ["fp32"]


def test_what_mlflow_lacks_is_not_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {"key": "k" * 64, "tracking_run_id": None, "model": "folder", "weights_sha256": "s",
               "delivered": False}  # fmt: skip
    monkeypatch.setattr(cells, "pretrain_model", lambda config, uri: summary)
    training = PretrainConfig(store=str(tmp_path))
    late = train({}, config=training, data="d")
    assert not graph.is_delivered(late)

    measured: list[Any] = []

    def evaluate(config: Any) -> dict[str, Any]:
        measured.append(config.model)
        return {"models": [], "sections": [], "delivered": False}

    monkeypatch.setattr(workflow_stages, "evaluate_models", evaluate)
    cell = Cell(Arm("central", 0.0), 0, 6)
    requested = evaluation_config(config("d", tmp_path), cell, "d")
    assert not graph.is_delivered(measure({"t": late}, config=requested, trained="t"))
    assert measured == [("central-0=folder",)]


def finished(config: AblateConfig, run_ids: list[str]) -> dict[str, Any]:
    """What `sweep` returns, of one arm with a cell per training run."""
    cells = [
        {"arm": "central-0", "strategy": "central", "adversarial": 0.0, "seed": seed, "steps": 6,
         "status": "done", "error": None, "scores": {"L2": 0.1}, "seconds": 1.0, "cpu_hours": 0.1,
         "gpu_hours": 0.0, "curve": [], "panel": None, "restarts": 0, "tracking_run_id": run_id}
        for seed, run_id in enumerate(run_ids)
    ]  # fmt: skip
    return {"key": "k" * 64, "dataset_fingerprint": "f" * 64, "code": "c", "metric": "L2",
            "verdict": "no verdict", "arms": ["central-0"], "seeds": len(cells), "steps": 6,
            "rungs": [], "comparisons": {}, "settings": {}, "cells": cells}  # fmt: skip


def logged(config: AblateConfig, found: dict[str, Any]) -> tuple[str, dict[str, str], Any]:
    """What is printed, the status of every run by its name, and the server."""
    shown = io.StringIO()
    publish.publish_sweep(config, found, Console(file=shown, width=200))
    server = client(tracking_uri(None, config.store))
    experiment = experiment_id(server, config.experiment, config.store)
    runs = server.search_runs([experiment])
    return shown.getvalue(), {run.info.run_name: run.info.status for run in runs}, server


def test_a_training_run_on_another_server_is_named_and_the_others_are_logged(
    tmp_path: Path,
) -> None:
    wanted = config("d", tmp_path)
    uri = tracking_uri(None, wanted.store)
    spec = RunSpec(
        uri=uri, store=wanted.store, experiment=wanted.experiment, key="t", name="training"
    )
    with registry.open_run(spec, good=True) as here:
        pass
    text, statuses, server = logged(wanted, finished(wanted, ["0" * 32, here]))
    assert f"{uri} does not have the training runs of central-0 seed 0, 6 steps\n" in text
    assert len(statuses) == 4 and set(statuses.values()) == {"FINISHED"}
    cell = server.get_run(server.get_run(here).data.tags["mlflow.parentRunId"])
    assert cell.info.run_name == "central-0 seed 1" and cell.data.metrics["L2"] == 0.1


def test_a_server_that_goes_away_leaves_no_run_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object) -> None:
        raise OSError("no space left there")

    monkeypatch.setattr(publish, "_log_cell", away)
    wanted = config("d", tmp_path)
    text, statuses, _ = logged(wanted, finished(wanted, ["0" * 32]))
    assert "does not have the sweep yet (no space left there)" in text
    assert set(statuses.values()) == {"FAILED"} and len(statuses) == 2

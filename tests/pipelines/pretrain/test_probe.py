"""Probes measure a checkpoint beside the training, on its step, and stop nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import ray
import torch
from dataset_helpers import prepared

from ce_model import training
from pipelines.models import checkpoint
from pipelines.pretrain import probe, worker
from pipelines.pretrain import run as run_module
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.messages import CurvePoint
from pipelines.pretrain.probe import Probes
from pipelines.pretrain.recipe import resolve_recipe


def two_classes(folder: Path) -> Path:
    """Dark and bright images, which any features tell apart."""
    drawn = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 180)):
        (folder / name).mkdir(parents=True)
        for at in range(12):
            coarse = drawn.integers(low, low + 70, (4, 4, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (140, 140), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / name / f"{at}.jpg"), image)
    return folder


def test_a_probe_fills_every_hole_it_can_and_asks_for_the_class(
    serially: None, tmp_path: Path
) -> None:
    uri = str(tmp_path / "data")
    manifest = prepared(
        two_classes(tmp_path / "images"), uri, sides=(64, 128), stored_side=140,
        strategies=("central", "random_block"), validation_share=0.3,
    )  # fmt: skip
    found = {}
    for preset, strategy in (("inpaint", "central"), ("inpaint", "random_block")):
        config = PretrainConfig(
            preset=preset, strategy=strategy, steps=4, batch_size=4, bottleneck=16,
            adversarial=0.0, ema=0.9, probe_images=16,
        )  # fmt: skip
        recipe = resolve_recipe(config, manifest.mean_rgb)
        plan = run_module._plan(config, recipe, uri, manifest)
        task = run_module._task(config, recipe, plan, str(tmp_path / strategy))
        networks, optimizers = worker.build(task, torch.device("cpu"))
        checkpoint.save(task.stage_uri, 4, training.state_tensors(networks, optimizers), {})
        found[strategy] = probe.measure(task, 4)
    classes = {"probe/knn_accuracy", "probe/linear_accuracy"}
    central = {"probe/central/psnr_hole", "probe/central/ssim_hole"}
    block = {name.replace("central", "random_block") for name in central}
    assert found["central"].keys() == classes | central  # its network predicts the centre alone
    assert found["random_block"].keys() == classes | central | block
    for values in found.values():
        assert values["probe/knn_accuracy"] == values["probe/linear_accuracy"] == 1
        assert all(np.isfinite(value) for value in values.values())


class Tasks:
    """Ray tasks that end when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: dict[int, Any] = {}
        start = SimpleNamespace(remote=lambda task, step: step)
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
        monkeypatch.setattr(ray, "remote", lambda **options: lambda function: start)
        monkeypatch.setattr(
            ray, "wait", lambda refs, timeout: ([r for r in refs if r in self.done], [])
        )
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "cancel", lambda ref, force: None)

    def get(self, ref: int) -> dict[str, float]:
        if isinstance(self.done[ref], Exception):
            raise self.done[ref]
        return {"probe/knn_accuracy": self.done[ref]}


def test_probes_land_on_their_step_and_what_is_late_or_fails_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = Tasks(monkeypatch)
    points: list[CurvePoint] = []
    told: list[str] = []
    task: Any = SimpleNamespace(plan=SimpleNamespace(steps=70))

    def add(values: dict[str, float], step: int, time_s: float) -> None:
        points.append(CurvePoint(step, time_s, values))

    probes = Probes(task, 20, add, told.append)
    for step in (10, 20, 40, 60):  # the first is no time for one
        probes.checkpoint(step)
    assert told == [
        "the probe of step 40 is left out, since one is still at work (1 left out so far; a larger "
        "--probe-every makes them fewer)"
    ]
    tasks.done |= {20: 0.5, 60: FileNotFoundError("it was removed")}
    probes.checkpoint(70)  # the last, whatever the period
    assert [(point.step, point.values["probe/knn_accuracy"]) for point in points] == [(20, 0.5)]
    probes.collect()
    assert "the probe of step 60 is left out: its checkpoint was removed" in told[-1]
    tasks.done[70] = ValueError("no such thing\nand a stack")
    probes.close(1.0)
    assert told[-1] == "warning: the probe of step 70 failed: no such thing"
    assert len(points) == 1 and len(told) == 3


def test_the_last_probe_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    Tasks(monkeypatch)
    told: list[str] = []
    task: Any = SimpleNamespace(plan=SimpleNamespace(steps=70))
    probes = Probes(task, 20, lambda *_: None, told.append)
    probes.checkpoint(70)
    probes.close(0.0)
    assert told == ["the probe of step 70 is left out: it took too long"]


def test_without_a_period_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "remote", None)
    task: Any = SimpleNamespace(plan=SimpleNamespace(steps=70))
    probes = Probes(task, None, lambda *_: None, lambda _: None)
    probes.checkpoint(70)
    probes.close(0.0)

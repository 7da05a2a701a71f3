"""A finished training that is given more steps continues; one that would differ starts anew."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines import storage
from pipelines.models import checkpoint
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.continuation import Finished, find_finished, start_from
from pipelines.pretrain.key import keys_of_all_versions, pretrain_key, stage_uri, stored_key
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.pretrain.run import read_commit

MANIFEST: Any = SimpleNamespace(mean_rgb=(1.0, 2.0, 3.0), fingerprint="0" * 64)


def finish(home: Path, config: PretrainConfig, key: str | None = None) -> str:
    """What a finished training leaves, as far as it matters here."""
    key = key or pretrain_key(config, MANIFEST)
    stage = str(home / key[:16])
    summary = {"key": key, "steps": config.steps, "preset": config.preset}
    storage.publish_json(storage.join(stage, "commit.json"), summary)
    totals = {"train_s": 1.0, "wait_s": 0.0, "steps": config.steps, "restarts": 2, "skipped": 0}
    state = {"history": [], "totals": totals, "untrained": {}}
    checkpoint.save(stage, config.steps, {"weight": torch.arange(3.0)}, state)
    return stage


def find(home: Path, config: PretrainConfig) -> Finished | None:
    recipe = resolve_recipe(config, MANIFEST.mean_rgb)
    return find_finished(config, recipe, MANIFEST, str(home))


def test_the_longest_finished_training_is_continued(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100, seed=3)
    assert find(tmp_path, config) is None
    stages = [finish(tmp_path, replace(config, steps=steps)) for steps in (40, 60, 200)]
    finish(tmp_path, replace(config, steps=80, seed=4))  # another one
    assert find(tmp_path, config) == Finished(stages[1], 60, is_start=True)


def test_the_state_and_its_totals_are_taken_over(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100)
    finish(tmp_path, replace(config, steps=60))
    found = find(tmp_path, config)
    assert found is not None
    start_from(found, str(tmp_path / "longer"))
    start = checkpoint.latest(str(tmp_path / "longer"))
    assert start is not None and start.step == 60
    assert start.state["continues"] == found.stage
    assert start.state["totals"]["restarts"] == 2
    assert torch.equal(start.tensors()["weight"], torch.arange(3.0))


@pytest.mark.parametrize(
    ("changes", "is_start"),
    [
        ({"schedule": "cosine"}, False),
        ({"warmup_steps": 10}, True),
        ({"schedule": "step", "milestones": (20,)}, True),
        ({"schedule": "step", "milestones": (80,)}, None),  # no training of 60 steps can have it
        ({"schedule": "step"}, False),
    ],
)
def test_only_a_training_with_the_same_rates_up_to_there_is_a_start(
    changes: dict[str, Any], is_start: bool | None, tmp_path: Path
) -> None:
    config = PretrainConfig(steps=100, **changes)
    if is_start is not None:
        finish(tmp_path, replace(config, steps=60))
    found = find(tmp_path, config)
    assert (found and found.is_start) == is_start


def test_the_other_weights_are_exported_without_training(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100, ema=0.9)
    stage = finish(tmp_path, config)
    assert find(tmp_path, replace(config, export="raw")) == Finished(stage, 100, is_start=True)


def test_the_number_of_validation_images_is_in_no_key(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100)
    assert pretrain_key(config, MANIFEST) == pretrain_key(
        replace(config, validation_images=12), MANIFEST
    )


def test_a_training_of_before_that_had_it_in_its_key_is_found(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100, validation_images=12)
    (before,) = keys_of_all_versions(config, MANIFEST) - {pretrain_key(config, MANIFEST)}
    stage = finish(tmp_path, config, before)
    assert find(tmp_path, config) == Finished(stage, 100, is_start=True)


def test_the_same_command_finds_the_stage_that_it_made_before_that(tmp_path: Path) -> None:
    config = PretrainConfig(steps=100, validation_images=12, store=str(tmp_path))
    today = pretrain_key(config, MANIFEST)
    (before,) = keys_of_all_versions(config, MANIFEST) - {today}
    assert stored_key(config, MANIFEST) == today
    finish(tmp_path / "pretrain", config, before)
    assert stored_key(config, MANIFEST) == before
    finish(tmp_path / "pretrain", config, today)
    assert stored_key(config, MANIFEST) == today
    assert Path(stage_uri(str(tmp_path), today)).parent == tmp_path / "pretrain"


def test_the_summary_of_a_moved_store_names_nothing_of_the_old_place(tmp_path: Path) -> None:
    stage = str(tmp_path / "new" / "pretrain" / "k")
    old = "/old/store"
    summary = {
        "model": f"{old}/pretrain/k/model",
        "panel": f"{old}/pretrain/k/panel.png",
        "dataset": f"{old}/prepare/d",
        "tracking_uri": f"sqlite:///{old}/mlflow.db",
        "tracking_run_id": "r",
    }
    storage.publish_json(storage.join(stage, "commit.json"), summary)
    found = read_commit(stage)
    assert found["tracking_uri"] == f"sqlite:///{tmp_path}/new/mlflow.db"
    assert found["model"] == f"{stage}/model"
    assert old not in str(found)

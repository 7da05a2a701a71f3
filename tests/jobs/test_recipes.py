"""The recipes are settings that their jobs take, and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, write_images

from pipelines.ablation.config import AblateConfig, arms
from pipelines.cli import parse
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.key import settings_in_key
from pipelines.pretrain.recipe import resolve_recipe

RECIPES = ROOT / "configs" / "recipes"
SMALLEST = {  # of a recipe: flags after its file
    "features": ["--warmup-steps", "1"],
    "relative_position": ["--warmup-steps", "1"],
    "exemplar": ["--warmup-steps", "1"],
    "transformation": ["--warmup-steps", "1"],
    "features_resnet50_imagenet": ["--warmup-steps", "1", "--validate-every", "2"],
    "fill_photographs": ["--warmup-steps", "1"],
    "paper_features": [],
    "paper_inpaint": ["--bottleneck", "16"],
}


@pytest.mark.parametrize(
    "name",
    ["features", "relative_position", "exemplar", "transformation", "paper_features",
     "paper_inpaint"],
)  # fmt: skip
def test_recipe_spells_out_the_defaults_of_its_preset(name: str) -> None:
    config = parse(PretrainConfig, ["--config", str(RECIPES / f"{name}.yaml")])
    usual = PretrainConfig(
        preset=config.preset, pretext=config.pretext, steps=config.steps,
        batch_size=config.batch_size,
    )  # fmt: skip
    assert resolve_recipe(config) == resolve_recipe(usual)
    assert settings_in_key(config).keys() == settings_in_key(usual).keys()
    assert config.steps * config.batch_size == 102_400


def test_study_compares_targets_layers_and_holes() -> None:
    config = parse(AblateConfig, ["--config", str(RECIPES / "features_study.yaml")])
    names = [str(arm) for arm in arms(config)]
    assert len(set(names)) == 3 * 2 * 4
    assert "grid_60-0-hog-masked" in names


def test_every_recipe_is_run() -> None:
    trained = {path.stem for path in RECIPES.glob("*.yaml")} - {"features_study"}
    assert trained == SMALLEST.keys()


def run_job(job: str, *flags: str) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", *flags],
        cwd=ROOT, env={**os.environ, "RAY_AUTH_MODE": "token"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder / "train", {"apple": 12, "pear": 12})
    write_images(folder / "val", {"apple": 4, "pear": 4}, first=1000)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_recipe_goes_from_images_to_a_model_elsewhere(
    name: str, photographs: Path, tmp_path: Path
) -> None:
    summary, store = tmp_path / "summary.json", str(tmp_path / "store")
    run_job(
        "pretrain", "--config", str(RECIPES / f"{name}.yaml"), "--source", str(photographs),
        "--store", store, "--steps", "2", "--batch-size", "4", "--checkpoint-every", "2",
        "--threads-per-worker", "1", "--validation-images", "4", "--summary", str(summary),
        *SMALLEST[name],
    )  # fmt: skip
    found = json.loads(summary.read_text())
    assert found["steps"] == 2 and Path(found["panel"]).stat().st_size > 10_000
    common = ["--store", store]
    run_job("export", "--model", found["model"], "--output", str(tmp_path / "out"), *common)
    described = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert max(described["largest_difference"].values()) < 1e-3
    if name in ("features", "relative_position"):
        run_job("embed", "--model", found["model"], "--source", str(photographs), *common)
        run_job(
            "evaluate", "--model", found["model"], "--data", str(photographs), *common,
            "--tasks", "linear", "knn", "--frozen.label-shares", "1",
            "--report", str(tmp_path / "report"),
        )  # fmt: skip
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        assert [section["task"] for section in report["sections"]] == ["linear", "knn"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_study_goes_from_images_to_its_table(photographs: Path, tmp_path: Path) -> None:
    run_job(
        "ablate", "--config", str(RECIPES / "features_study.yaml"), "--source", str(photographs),
        "--store", str(tmp_path), "--strategies", "grid_60", "--targets", "pixels", "hog",
        "--layers", "masked", "--seeds", "1", "--tasks", "knn", "--pretrain.steps", "2",
        "--pretrain.batch-size", "4", "--pretrain.checkpoint-every", "2",
    )  # fmt: skip

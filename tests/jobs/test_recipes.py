"""The recipes are settings that their jobs take."""

from pathlib import Path

import pytest

from pipelines.ablation.config import AblateConfig, arms
from pipelines.cli import parse
from pipelines.pretrain.config import PretrainConfig, resolve_recipe
from pipelines.pretrain.key import settings_in_key

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"


@pytest.mark.parametrize("name", ["features", "paper_features", "paper_inpaint"])
def test_recipe_spells_out_the_defaults_of_its_preset(name: str) -> None:
    config = parse(PretrainConfig, ["--config", str(RECIPES / f"{name}.yaml")])
    usual = PretrainConfig(preset=config.preset, steps=config.steps, batch_size=config.batch_size)
    assert resolve_recipe(config) == resolve_recipe(usual)
    assert settings_in_key(config).keys() == settings_in_key(usual).keys()
    assert config.steps * config.batch_size == 102_400


def test_study_compares_targets_layers_and_holes() -> None:
    config = parse(AblateConfig, ["--config", str(RECIPES / "features_study.yaml")])
    names = [str(arm) for arm in arms(config)]
    assert len(set(names)) == 3 * 2 * 4
    assert "grid_60-0-hog-masked" in names

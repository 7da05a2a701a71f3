"""What MLflow shows of a training is what it computes with, and its command can be given again."""

import json
import shlex
from typing import Any

import pytest

from pipelines import cli
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.parameters import effective, given
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.promotion.explain import reproduce
from pipelines.tracking.registry import GIVEN_TAG, RunFacts

CONFIGS = [
    PretrainConfig(),
    PretrainConfig(preset="unet", adversarial=0.03, feature_matching=1.0, ema=0.99),
    PretrainConfig(preset="features", source="a b", steps=40, crop_area=(0.5, 1.0)),
    PretrainConfig(preset="alexnet", optimizer="sgd", schedule="step", fill=(1.0, 2.0, 3.0)),
]


def shown(config: PretrainConfig) -> dict[str, Any]:
    return effective(config, resolve_recipe(config), source="photos", use_gpu=False)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.preset)
def test_no_parameter_is_left_to_the_reader(config: PretrainConfig) -> None:
    found = shown(config)
    recipe = resolve_recipe(config)
    assert None not in found.values() and "None" not in map(str, found.values())
    assert found["strategy"] == recipe.strategy
    assert found["learning_rate"] == recipe.learning_rates.generator
    assert found["source"] == "photos"
    assert "store" not in found


def test_what_a_preset_does_not_use_is_left_out() -> None:
    inpaint, unet, features, alexnet = map(shown, CONFIGS)
    assert inpaint["bottleneck"] == 4000 and "bottleneck" not in unet
    assert features["target"] == "hog" and "target" not in inpaint
    assert features["encoder"] == "alexnet" and "encoder" not in unet
    assert features["crop_area"] == (0.5, 1.0) and "shorter" not in features
    assert features["init"] == "kmeans" and alexnet["init"] == "random"
    assert "momentum" in alexnet and "betas" not in alexnet
    assert unet["fill"] == "smooth" and alexnet["fill"] == (1.0, 2.0, 3.0)
    assert "discriminator_learning_rate" in unet
    assert "discriminator_learning_rate" not in features


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.preset)
def test_the_settings_that_were_given_make_the_same_config(config: PretrainConfig) -> None:
    facts = RunFacts(
        run_id="r", experiment_id="0", status="FINISHED", deleted=False, params={},
        tags={GIVEN_TAG: json.dumps(given(config))},
    )  # fmt: skip
    job, *words = shlex.split(reproduce(facts))[1:]
    assert job == "jobs/pretrain.py"
    assert cli.parse(PretrainConfig, words) == config


def test_no_password_is_among_them() -> None:
    config = PretrainConfig(source="https://alice:s3cr3t@host/set.tar")
    assert "s3cr3t" not in json.dumps(given(config))

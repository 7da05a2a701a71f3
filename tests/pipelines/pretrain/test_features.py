"""Preset features from images to a model that evaluation and export read, without a cluster."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_helpers import prepared, write_smooth_images
from rich.console import Console
from training_helpers import check_features, reference_of, take_steps

from pipelines.data import stream, stream_plan
from pipelines.data.manifest import Manifest
from pipelines.evaluation import encoders
from pipelines.export.layers import describe_layers
from pipelines.export.run import fold_encoder
from pipelines.pretrain import panel, validation, worker
from pipelines.pretrain import run as run_module
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.initial import read_initial
from pipelines.pretrain.recipe import resolve_recipe
from pipelines.pretrain.task import Task

CPU = torch.device("cpu")


def with_grid_holes(folder: Path, count: int) -> tuple[str, Manifest]:
    """A dataset of smooth images for preset features."""
    uri = str(folder / "data")
    manifest = prepared(
        write_smooth_images(folder / "images", count), uri, sides=(128,), stored_side=160,
        strategies=("grid_60",),
    )  # fmt: skip
    return uri, manifest


def begin(config: PretrainConfig, uri: str, manifest: Manifest, stage: Path) -> Task:
    """What a worker gets, with the weights to start from in the stage."""
    recipe = resolve_recipe(config, manifest.mean_rgb)
    plan = run_module._plan(config, recipe, uri, manifest)
    task = run_module._task(config, recipe, plan, str(stage))
    run_module._begin_from(config, recipe, plan, task.stage_uri, Console())
    return task


def test_features_go_from_images_to_a_model_that_evaluation_reads(
    serially: None, tmp_path: Path
) -> None:
    uri, manifest = with_grid_holes(tmp_path, 24)
    config = PretrainConfig(preset="features", steps=6, batch_size=6, validation_images=4)
    task = begin(config, uri, manifest, tmp_path / "stage")
    recipe = task.recipe

    networks, optimizers = worker.build(task, CPU)
    losses = []
    for fed, measured in take_steps(task, networks, optimizers):
        assert fed.image.shape == (6, 128, 128, 3)
        assert fed.hidden.float().mean() == pytest.approx(round(0.6 * 64) / 64)
        losses.append(float(measured["loss/joint"]))
    assert len(losses) == config.steps and losses[-1] < losses[0]

    fixed = worker.read_fixed_images(task, "val", 4, (0, 1), CPU)
    look = validation.EvalSettings(recipe.network, recipe.objective, torch.float32)
    measured = validation.measure(networks.generator, fixed, look)
    assert set(measured) == {"target_error", "target_error_mean", "variance_ratio"}
    assert panel.draw(validation.panel(networks.generator, fixed, look), "hog")[1:4] == b"PNG"

    model = check_features(networks, recipe, tmp_path / "model")
    for name in ("linear", "segmentation", "detection"):
        encoders.require_network(reference_of(tmp_path / "model"), name)
    assert describe_layers(fold_encoder(model.generator.encoder))[0]["arguments"]["padding"]


def test_the_first_layers_begin_with_filters_of_training_images(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, manifest = with_grid_holes(tmp_path, 24)

    def weights(stage: str, **changes: Any) -> dict[str, torch.Tensor]:
        config = PretrainConfig(preset="features", batch_size=6, **changes)
        task = begin(config, uri, manifest, tmp_path / stage)
        return dict(worker.build(task, CPU)[0].generator.state_dict())

    usual = weights("usual")
    line = f"k-means of patches of {manifest.rows('train')} training images"
    assert f"initial filters of conv1 and conv2: {line}" in capsys.readouterr().out
    random = weights("random", init="random")
    assert not capsys.readouterr().out
    changed = {name for name in usual if not torch.equal(usual[name], random[name])}
    assert changed == {"encoder.conv1.weight", "encoder.conv2.weight"}
    again, other = weights("again", init="kmeans"), weights("other", seed=1)
    for name in changed:
        assert torch.equal(usual[name], again[name])
        assert not torch.equal(usual[name], other[name])


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (64, 3, 7, 7)), ("convnextv2_atto", (40, 3, 4, 4))]
)
def test_the_stem_of_another_backbone_begins_with_filters_when_asked(
    name: str, shape: tuple[int, ...], serially: None, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    uri, manifest = with_grid_holes(tmp_path, 12)
    config = PretrainConfig(preset="features", encoder=name, init="kmeans", batch_size=2)
    task = begin(config, uri, manifest, tmp_path / "stage")
    ((key, weight),) = read_initial(task.stage_uri).items()
    assert weight.shape == shape and weight.isfinite().all()
    generator = worker.build(task, CPU)[0].generator
    assert torch.equal(generator.get_parameter(key), weight)


def test_crops_and_flips_follow_from_seed_epoch_and_image(serially: None, tmp_path: Path) -> None:
    uri, manifest = with_grid_holes(tmp_path, 12)
    config = PretrainConfig(preset="features", steps=4, batch_size=3)
    recipe = resolve_recipe(config, manifest.mean_rgb)
    plan = run_module._plan(config, recipe, uri, manifest)
    key = "0.jpg"
    draws = [stream_plan.Draw.of(plan, epoch, key) for epoch in range(200)]
    assert draws == [stream_plan.Draw.of(plan, epoch, key) for epoch in range(200)]
    assert len({draw.resized for draw in draws}) > 190
    flipped = np.mean([draw.augment >= stream.FLIP for draw in draws])
    assert 0.35 < flipped < 0.65
    first, second = (
        [b["image"] for w in stream_plan.windows(plan) for b in stream.read_window(plan, w)]
        for _ in range(2)
    )
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))

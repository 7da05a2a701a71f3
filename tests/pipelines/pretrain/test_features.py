"""Preset features from images to a model that evaluation and export read, without a cluster."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dataset_helpers import prepared

from ce_model.networks import layer_features
from ce_model.training import set_learning_rates
from pipelines.data import stream, stream_plan
from pipelines.errors import UserError
from pipelines.evaluation import encoders
from pipelines.export.layers import describe_layers
from pipelines.export.run import fold_encoder
from pipelines.models import files, resolve
from pipelines.models.fill import fill_photograph
from pipelines.pretrain import device_feed, panel, validation, worker
from pipelines.pretrain import run as run_module
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.recipe import resolve_recipe

CPU = torch.device("cpu")


def _images(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for at in range(count):
        coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{at}.jpg"), image)
    return folder


def test_features_go_from_images_to_a_model_that_evaluation_reads(
    serially: None, tmp_path: Path
) -> None:
    uri = str(tmp_path / "data")
    manifest = prepared(
        _images(tmp_path / "images", 24), uri, sides=(128,), stored_side=160,
        strategies=("grid_60",),
    )  # fmt: skip
    config = PretrainConfig(preset="features", steps=6, batch_size=6, validation_images=4)
    recipe = resolve_recipe(config, manifest.mean_rgb)
    plan = run_module._plan(config, recipe, uri, manifest)
    task = run_module._task(config, recipe, plan, str(tmp_path / "stage"))

    networks, optimizers = worker.build(task, CPU)
    networks.generator.train()
    take = worker.cuda_graph.make_step(
        networks, optimizers, CPU,
        network=recipe.network, objective=recipe.objective, dtype=torch.float32,
    )  # fmt: skip
    batches = (
        batch for window in stream_plan.windows(plan) for batch in stream.read_window(plan, window)
    )
    losses = []
    for step, (image, hidden, _) in enumerate(device_feed.feed(batches, CPU)):
        assert image.shape == (6, 128, 128, 3)
        assert hidden.float().mean() == pytest.approx(round(0.6 * 64) / 64)
        set_learning_rates(
            optimizers, recipe.learning_rates, recipe.optimization, step, config.steps
        )
        losses.append(float(take(image, hidden)["loss/joint"]))
        if len(losses) == config.steps:
            break
    assert len(losses) == config.steps and losses[-1] < losses[0]

    fixed = worker.read_fixed_images(task, "val", 4, (0, 1), CPU)
    look = validation.EvalSettings(recipe.network, recipe.objective, torch.float32)
    measured = validation.measure(networks.generator, fixed, look)
    assert set(measured) == {"target_error", "target_error_mean", "variance_ratio"}
    assert panel.draw(validation.panel(networks.generator, fixed, look), "hog")[1:4] == b"PNG"

    folder = str(tmp_path / "model")
    files.save_model(folder, networks.generator, recipe.network, recipe.objective, {})  # type: ignore[arg-type]
    model = files.load_model(folder)
    assert model.network == recipe.network and model.side == 128
    x = torch.rand(4, 3, 128, 128) * 2 - 1
    reference = resolve.trained_ref("features", folder)
    encoder = encoders.encoder_of(reference, 0, [x])
    assert layer_features(encoder, x)["pool5"].shape == (4, 256, 4, 4)
    for name in ("linear", "segmentation", "detection"):
        encoders.require_network(reference, name)
    assert describe_layers(fold_encoder(model.generator.encoder))[0]["arguments"]["padding"]

    with pytest.raises(UserError, match="learns features alone"):
        encoders.require_network(reference, "inpainting")
    photograph, hole = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.bool_)
    hole[20:30, 20:30] = True
    with pytest.raises(UserError, match="fills no holes"):
        fill_photograph(model, photograph, hole)


def test_crops_and_flips_follow_from_seed_epoch_and_image(serially: None, tmp_path: Path) -> None:
    uri = str(tmp_path / "data")
    manifest = prepared(
        _images(tmp_path / "images", 12), uri, sides=(128,), stored_side=160,
        strategies=("grid_60",),
    )  # fmt: skip
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

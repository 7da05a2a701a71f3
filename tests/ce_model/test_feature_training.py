"""Preset features in training: what a step minimises, and what no longer needs a mask after it."""

import numpy as np
import pytest
import torch

from ce_model import feature_targets
from ce_model.masks import mask_for
from ce_model.networks import NetworkConfig, build_generator, layer_features
from ce_model.training import (
    Networks,
    default_objective,
    default_optimization,
    make_optimizers,
    make_views,
    predict_cells,
    train_step,
)
from ce_model.transfer.initialisation import calibrate, fold

HOG = NetworkConfig(preset="features", output="full")
DENSE = NetworkConfig(preset="features", output="full", target="pixels", layers="dense")


def _batch(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 128, 128, 3), generator=generator, dtype=torch.uint8)
    masks = np.stack([mask_for(0, "grid_60", 128, str(at), 0) for at in range(count)])
    return image, torch.from_numpy(masks)


@pytest.mark.parametrize("network", [HOG, DENSE], ids=["masked hog", "dense pixels"])
def test_a_step_in_bfloat16_follows_one_in_float32(network: NetworkConfig) -> None:
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        generator = build_generator(network, generator=torch.Generator().manual_seed(1)).train()
        networks = Networks(generator, None)
        optimizers = make_optimizers(networks, 1e-3, 1e-4, default_optimization(network, 10))
        step = {"network": network, "objective": default_objective(network), "dtype": dtype}
        metrics = [train_step(networks, optimizers, *_batch(), **step) for _ in range(2)]  # type: ignore[arg-type]
        assert all(each["nonfinite"] == 0 for each in metrics)
        losses[dtype] = [float(each["loss/joint"]) for each in metrics]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.03)


@pytest.mark.parametrize("network", [HOG, DENSE], ids=["masked hog", "dense pixels"])
def test_step_minimises_the_mean_error_of_hidden_cells(network: NetworkConfig) -> None:
    image, hidden = _batch()
    generator = build_generator(network, generator=torch.Generator().manual_seed(1)).train()
    objective = default_objective(network)
    views = make_views(image, hidden, network, objective)
    assert views.cells is not None
    with torch.no_grad():
        statistics = {n: b.clone() for n, b in generator.named_buffers()}
        predicted = generator(views.context, views.cells)
        for name, buffer in generator.named_buffers():
            buffer.copy_(statistics[name])
    error = (predicted - views.target).square().permute(0, 2, 3, 1).numpy()
    expected = error[views.cells.numpy()].mean()

    networks = Networks(generator, None)
    optimizers = make_optimizers(networks, 1e-3, 1e-4, default_optimization(network, 10))
    step = {"network": network, "objective": objective, "dtype": torch.float32}
    losses = [
        float(train_step(networks, optimizers, image, hidden, **step)["loss/joint"])  # type: ignore[arg-type]
        for _ in range(4)
    ]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]


def test_cells_are_hidden_whole_and_their_targets_are_those_of_the_image() -> None:
    image, hidden = _batch()
    hidden[:] = False
    hidden[0, 40, 40] = True
    views = make_views(image, hidden, HOG, default_objective(HOG))
    assert views.cells is not None and views.cells.sum() == 1 and views.cells[0, 2, 2]
    scaled = image.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(views.target, feature_targets.make_target("hog", scaled))
    changed = (views.context - scaled).abs().amax((0, 1)) > 1e-6
    assert changed[32:48, 32:48].float().mean() > 0.9 and changed.sum() <= 256


def test_prediction_is_of_the_hidden_cells_in_their_order() -> None:
    image, hidden = _batch()
    generator = build_generator(HOG)
    settings = {"network": HOG, "objective": default_objective(HOG), "dtype": torch.float32}
    seen = predict_cells(generator, image, hidden, **settings)  # type: ignore[arg-type]
    assert seen.prediction.shape == seen.target.shape == (2 * round(0.6 * 64), 108)


def test_encoder_is_a_plain_network_after_training() -> None:
    """Calibrated, folded and taken layer by layer like the paper's, without a mask."""
    encoder = build_generator(HOG).encoder
    x = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calibrate(encoder, [x])
    folded = fold(encoder)
    features = layer_features(folded, x)
    sides = {name: value.shape[-1] for name, value in features.items()}
    assert sides == {"conv1": 32, "conv2": 16, "conv3": 8, "conv4": 8, "conv5": 8, "pool5": 4}
    torch.testing.assert_close(features["pool5"], encoder.eval()(x), rtol=1e-3, atol=1e-3)

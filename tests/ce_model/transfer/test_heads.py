"""Folding, rescaling and heads: laws on small encoders of the real layout."""

import math
from collections.abc import Callable

import pytest
import torch
from model_helpers import small_body
from torch import Tensor, nn

from ce_model import kmeans
from ce_model.hierarchy import Backbone
from ce_model.networks import NetworkConfig, build_generator
from ce_model.transfer import initialisation
from ce_model.transfer.detection import (
    Detections,
    FastRCNN,
    apply_corrections,
    choose_regions,
    corrections,
    detection_loss,
    detections,
    overlaps,
    roi_pool,
    suppress,
    with_number,
)
from ce_model.transfer.heads import (
    Classifier,
    Segmenter,
    initialise_head,
    pad_to_grid,
    pool_features,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, height: int = 227, width: int = 227, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(seed)) * 2 - 1


def encoder(norm: str = "batch") -> nn.Sequential:
    network = build_generator(NetworkConfig(preset="alexnet", output="full", norm=norm))  # type: ignore[arg-type]
    return network.encoder


def folded(norm: str = "batch") -> nn.Sequential:
    full = encoder(norm)
    initialisation.calibrate(full, [images(4)])
    return initialisation.fold(full)


def test_calibrated_statistics_are_those_of_the_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = images(8, 10, 10)
    initialisation.calibrate(network, [x[:4], x[4:]])
    y = network[0](x)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)))
    assert norm.momentum == 0.1 and network.training


def test_a_lone_image_at_the_end_calibrates_single_units_with_those_before_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4))
    x = images(9, 3, 3)
    initialisation.calibrate(network, [x[:4], x[4:8], x[8:]])
    norm = network[2]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None
    units = network[1](x.flatten(1))
    expected = (units[:4].var(0) + units[4:].var(0)) / 2
    torch.testing.assert_close(norm.running_var, expected)


@pytest.mark.parametrize("preset", ["alexnet", "inpaint"])
def test_folding_batch_norm_changes_no_output(preset: str) -> None:
    output = "full" if preset == "alexnet" else "center"
    size = {"bottleneck": 64} if preset == "inpaint" else {}
    config = NetworkConfig(preset=preset, output=output, **size)  # type: ignore[arg-type]
    full = build_generator(config).encoder
    side = 227 if preset == "alexnet" else 128
    initialisation.calibrate(full, [images(4, side, side)])
    plain = initialisation.fold(full)
    assert not [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    x = images(2, side, side, seed=1)
    torch.testing.assert_close(plain(x), full.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("filters", ["gaussian", "kmeans"])
def test_initialised_layers_have_zero_mean_and_unit_variance_on_the_data(
    filters: initialisation.Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "PATCHES", 500)
    plain = folded()
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    x = images(4)
    initialisation.initialise(layers, lambda: plain(x), filters=filters, generator=seeded())
    for layer in (plain.conv1, plain.conv2):
        x = plain[0](x) if layer is plain.conv1 else plain[1:4](x)
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", ["batch", "lrn"])
def test_equalising_keeps_the_function_and_makes_the_ratios_equal(norm: str) -> None:
    model = Classifier(folded(norm), 9216, 10, width=64).eval()
    for index, parameter in enumerate(model.parameters()):  # very unequal scales
        parameter.data.mul_(3.0 if index % 3 else 0.5)
    x = images(4)
    chain = [*initialisation.chain_of(model.encoder), *model.fresh()]
    before = model(x).detach()
    initialisation.equalise(chain, lambda: [model(x)], seeded())
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-3, atol=1e-3)
    factors = initialisation.equalise(chain, lambda: [model(x)], seeded())
    assert factors == pytest.approx([1.0] * len(chain), rel=1e-3)
    assert len(chain) == (8 if norm == "batch" else 6)  # nothing before the last LRN


def test_the_start_of_a_head_does_not_depend_on_the_scale_of_the_encoder() -> None:
    small, large = folded(), folded()
    with torch.no_grad():  # batch norm hides the norm of the weights; without it, scale is visible
        for name in ("conv3", "conv4"):
            getattr(large, name).weight.mul_(2.0)
            getattr(large, name).bias.mul_(2.0)
        large.conv4.bias.mul_(2.0)
        large.conv5.bias.mul_(4.0)  # what reaches it is four times as large
    x = images(4)
    norms = []
    for plain in (small, large):
        model = Classifier(plain, 9216, 5, width=32).eval()
        initialise_head(model.encoder, model.fresh(), lambda model=model: [model(x)], seeded())  # type: ignore[misc]
        norms.append([float(m.weight.detach().norm()) for m in plain if isinstance(m, nn.Conv2d)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_kmeans_filters_are_unit_directions_of_the_data() -> None:
    layer = nn.Conv2d(3, 8, 5)
    x = torch.zeros(4, 3, 20, 20)
    x[:, 0] = (torch.arange(20) % 2).float()  # vertical stripes in red: two phases
    centers = kmeans.filters_for(layer, x, seeded())
    strongest = centers.flatten(1).abs().argmax(1)
    assert (strongest < 25).all()  # red only
    again = kmeans.filters_for(layer, x, seeded())
    assert torch.equal(centers, again)


def reference_roi_pool(features: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """The loop of the released Fast R-CNN layer."""
    count, channels = len(rois), features.shape[1]
    result = torch.zeros(count, channels, side, side)
    for r, (number, x1, y1, x2, y2) in enumerate(rois.tolist()):
        left, top = math.floor(x1 * scale + 0.5), math.floor(y1 * scale + 0.5)
        right, bottom = math.floor(x2 * scale + 0.5), math.floor(y2 * scale + 0.5)
        high, wide = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i in range(side):
            for j in range(side):
                a, b = top + i * high // side, top + -(-(i + 1) * high // side)
                c, d = left + j * wide // side, left + -(-(j + 1) * wide // side)
                a, b = min(a, features.shape[2]), min(b, features.shape[2])
                c, d = min(c, features.shape[3]), min(d, features.shape[3])
                for channel in range(channels):
                    values = features[int(number), channel, a:b, c:d]
                    result[r, channel, i, j] = values.max()
    return result


def test_roi_pooling_equals_the_loop() -> None:
    generator = seeded(3)
    features = torch.randn(2, 3, 12, 15, generator=generator)
    corner = torch.rand(20, 2, generator=generator) * 150
    size = torch.rand(20, 2, generator=generator) * 80
    far = torch.tensor([15 * 16 - 9.0, 12 * 16 - 9.0])
    rois = torch.cat(
        [(torch.arange(20) % 2)[:, None].float(), corner, (corner + size).minimum(far)], dim=1
    )
    expected = reference_roi_pool(features, rois, 6, 1 / 16)
    torch.testing.assert_close(roi_pool(features, rois, 6, 1 / 16), expected)


def test_no_region_gives_no_pooled_region() -> None:
    assert roi_pool(torch.zeros(1, 4, 5, 5), torch.zeros(0, 5), 6, 1 / 16).shape == (0, 4, 6, 6)


def test_corrections_and_corrected_are_inverse() -> None:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 19.0], [5.0, 5.0, 30.0, 12.0]])
    truth = torch.tensor([[2.0, 1.0, 20.0, 25.0], [0.0, 4.0, 40.0, 44.0]])
    torch.testing.assert_close(apply_corrections(boxes, corrections(boxes, truth)), truth)


def test_overlap_counts_both_corners() -> None:
    a = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    b = torch.tensor([[0.0, 0.0, 9.0, 19.0], [9.0, 9.0, 18.0, 18.0], [10.0, 0.0, 19.0, 9.0]])
    torch.testing.assert_close(overlaps(a, b), torch.tensor([[0.5, 1 / 199, 0.0]]))


def test_suppression_keeps_the_best_of_each_heap() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [1.0, 1, 10, 10], [50.0, 50, 59, 59], [0.0, 0, 9, 9]])
    kept = suppress(boxes, torch.tensor([0.5, 0.9, 0.1, 0.8]), 0.3)
    assert kept.tolist() == [1, 2]


def test_chosen_regions_hold_a_quarter_of_objects_with_their_classes() -> None:
    truth = torch.tensor([[10.0, 10, 49, 49], [60.0, 60, 99, 99]])
    jitter = torch.randint(-3, 4, (60, 4), generator=seeded()).float()
    near = truth[torch.arange(60) % 2] + jitter
    shifted = truth[torch.arange(60) % 2] + torch.tensor([20.0, 0, 20, 0])
    targets = choose_regions(torch.cat([near, shifted]), truth, torch.tensor([3, 7]), 32, seeded(1))
    objects = targets.classes > 0
    assert int(objects.sum()) == 8 and len(targets.boxes) == 32
    best, match = overlaps(targets.boxes, truth).max(1)
    assert (best[objects] >= 0.5).all() and (best[~objects] < 0.5).all()
    assert torch.equal(targets.classes[objects], torch.tensor([3, 7])[match[objects]])
    moved = apply_corrections(targets.boxes[objects], targets.deltas[objects])
    torch.testing.assert_close(moved, truth[match[objects]], atol=1e-3, rtol=0)


def test_an_image_without_objects_gives_background_only() -> None:
    proposals = torch.tensor([[0.0, 0, 9, 9], [5.0, 5, 20, 20]])
    empty = torch.zeros(0, 4)
    targets = choose_regions(proposals, empty, torch.zeros(0, dtype=torch.long), 8, seeded())
    assert targets.classes.tolist() == [0, 0]
    loss = detection_loss(torch.zeros(2, 4), torch.zeros(2, 4, 4), targets)
    assert float(loss) == pytest.approx(math.log(4))


def test_perfect_scores_and_corrections_give_the_true_boxes() -> None:
    truth = torch.tensor([[10.0, 10, 49, 49]])
    proposals = torch.tensor([[12.0, 8, 45, 50], [70.0, 70, 90, 90]])
    logits = torch.tensor([[0.0, 0, 9], [9.0, 0, 0]])
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 2] = corrections(proposals[:1], truth)[0]
    found: Detections = detections(logits, deltas, proposals, 100, 100)
    assert found.classes.tolist() == [2]
    torch.testing.assert_close(found.boxes, truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(227, 227), (180, 240), (33, 65)])
def test_the_feature_grid_lies_over_the_image(height: int, width: int) -> None:
    plain = folded()
    x = torch.zeros(1, 3, height, width)
    conv5 = plain[:-1](pad_to_grid(x, 16, 9))
    assert conv5.shape[2:] == (-(-height // 16), -(-width // 16))
    pool5 = plain(pad_to_grid(x, 32, 17))
    assert pool5.shape[2:] == (-(-height // 32), -(-width // 32))


def test_a_cell_answers_to_the_middle_of_its_own_pixels() -> None:
    """The gradient of one conv5 cell is centred on pixels 16 i to 16 i + 15."""
    plain = folded()
    with torch.no_grad():  # averaging filters, so that the centre of the gradient is exact
        for layer in plain:
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(1e-3)
                layer.bias.zero_()
    linear = nn.Sequential(
        *[nn.AvgPool2d(3, 2) if isinstance(m, nn.MaxPool2d) else m for m in plain[:-1]]
    )
    x = torch.ones(1, 3, 320, 320, requires_grad=True)
    linear(pad_to_grid(x, 16, 9))[0, 0, 10, 10].backward()
    assert x.grad is not None
    weight = x.grad[0].sum(0)
    center = (weight.sum(1) * torch.arange(320)).sum() / weight.sum()
    assert float(center) == pytest.approx(16 * 10 + 8, abs=0.6)


def test_heads_have_the_shapes_of_their_task() -> None:
    plain = folded()
    classifier = Classifier(plain, 9216, 7, width=16)
    assert classifier(images(2)).shape == (2, 7)
    segmenter = Segmenter(plain, 5, width=16)
    assert segmenter(images(1, 100, 131)).shape == (1, 5, 100, 131)
    rcnn = FastRCNN(plain, 20, width=16)
    rois = with_number([torch.tensor([[0.0, 0, 50, 60]]), torch.tensor([[3.0, 3, 90, 99]] * 2)])
    scores, deltas = rcnn(images(2, 100, 131), rois)
    assert scores.shape == (3, 21) and deltas.shape == (3, 21, 4)


def test_pooled_features_keep_to_the_budget() -> None:
    assert pool_features(torch.zeros(2, 96, 55, 55), 2400).shape == (2, 96 * 25)
    assert pool_features(torch.zeros(2, 256, 6, 6), 10**6).shape == (2, 9216)
    assert pool_features(torch.zeros(2, 400), 10).shape == (2, 400)


def of_unet() -> nn.Module:
    return build_generator(NetworkConfig(preset="unet", output="full")).encoder


def of_backbone() -> nn.Module:
    return Backbone(small_body(), "masked")


@pytest.mark.parametrize("make", [of_unet, of_backbone])
def test_heads_stand_on_the_map_of_any_encoder(make: Callable[[], nn.Module]) -> None:
    encoder = initialisation.fold(make().eval())
    x = torch.rand(2, 3, 70, 100, generator=torch.Generator().manual_seed(0))
    segmenter = Segmenter(encoder, 5, width=8)
    detector = FastRCNN(encoder, 3, width=8)
    rois = torch.tensor([[0.0, 4, 4, 60, 60], [1.0, 0, 0, 90, 60]])
    with torch.no_grad():
        assert segmenter(x).shape == (2, 5, 70, 100)
        assert [found.shape for found in detector(x, rois)] == [(2, 4), (2, 4, 4)]
    # Residual blocks are not homogeneous: their layers keep their scale.
    assert initialisation.chain_of(encoder) == []


def test_folding_a_backbone_changes_no_output() -> None:
    backbone = Backbone(small_body(), "masked").train()
    x = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    initialisation.calibrate(backbone, [x])
    folded = initialisation.fold(backbone)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    torch.testing.assert_close(folded.train()(x), backbone.eval()(x), atol=1e-4, rtol=1e-4)

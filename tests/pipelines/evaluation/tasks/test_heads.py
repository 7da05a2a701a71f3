"""Fine-tuning, segmentation and detection learn what is there, and do it the same way twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from numpy.typing import NDArray

from ce_model.networks import NetworkConfig
from pipelines.evaluation.data import proposals, voc
from pipelines.evaluation.data.images import ImageSet
from pipelines.evaluation.data.targets import IGNORED, TargetKind, single_label
from pipelines.evaluation.data.voc import Annotated, Mapped, Objects
from pipelines.evaluation.results import png
from pipelines.evaluation.settings import (
    DetectionSettings,
    FinetuneSettings,
    HeadTrainingSettings,
    SegmentationSettings,
)
from pipelines.evaluation.task import silent
from pipelines.evaluation.tasks import detection, finetune, head_training, segmentation
from pipelines.evaluation.tasks.head_training import choose_rate, optimise, split_off
from pipelines.models import resolve

ALEXNET = NetworkConfig(preset="alexnet", output="full")
RANDOM = resolve.untrained_ref("random", "random", ALEXNET)
VOC_MINI = ROOT / "data" / "voc_mini"
needs_voc = pytest.mark.skipif(
    not VOC_MINI.is_dir(), reason="data/voc_mini is not there (real VOC images, not ours to ship)"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a Ray task has; on a busy machine several threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scenes(count: int, side: int = 128) -> tuple[ImageSet, list[NDArray[np.uint8]], list[Objects]]:
    """A red or a blue block on noise: its label map (1 red, 2 blue) and its box."""
    rng = np.random.default_rng(0)
    encoded, maps, objects = [], [], []
    for number in range(count):
        image = rng.integers(90, 130, (side, side, 3)).astype(np.uint8)
        labels = np.zeros((side, side), np.uint8)
        kind = number % 2
        top, left = rng.integers(4, side // 2 - 4, 2)
        high, wide = rng.integers(side // 3, side // 2, 2)
        block = (slice(top, top + high), slice(left, left + wide))
        image[block] = (230, 30, 30) if kind == 0 else (30, 30, 230)
        labels[block] = kind + 1
        box = np.array([[left, top, left + wide - 1, top + high - 1]], np.float32)
        encoded.append(png(image))
        maps.append(labels)
        objects.append(Objects(box, np.array([kind]), np.array([False])))
    none = np.full(count, -1, np.int64)
    names = tuple(map(str, range(count)))
    return ImageSet(names, none, tuple(encoded), ("red", "blue"), 0), maps, objects


def short(**changes: object) -> HeadTrainingSettings:
    usual = {"steps": 20, "batch_size": 4, "learning_rates": (3e-4,), "width": 32, "dropout": 0.0}
    return HeadTrainingSettings(**{**usual, **changes})  # type: ignore[arg-type]


def test_fine_tuning_learns_labels_and_repeats_itself() -> None:
    images, _, objects = scenes(8)
    labels = np.array([o.classes[0] for o in objects])
    task = TargetKind(images, np.eye(2, dtype=np.float32)[labels], several=False)
    settings = FinetuneSettings(tuning=short(steps=10), label_shares=(1.0,), scale=(1.0, 1.0))
    first, second = (
        finetune.measure(RANDOM, 0, task, task, 227, settings, torch.float32) for _ in range(2)
    )
    assert first.rows == [{"labels": "100% (8)", "accuracy": 1.0}]
    assert first.rows == second.rows


def test_fine_tuning_begins_with_images_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def begin(encoder: torch.nn.Module, *rest: Any) -> None:
        encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((1, 2, 3))))
        rest[1]()

    monkeypatch.setattr(finetune, "initialise_head", begin)
    monkeypatch.setattr(finetune, "BEGIN_IMAGES", 2)
    monkeypatch.setattr(finetune, "optimise", lambda *_, **__: False)
    shades = [png(np.full((64, 64, 3), shade, np.uint8)) for shade in (0, 0, 255, 255)]
    images = ImageSet(tuple("abcd"), np.array([0, 0, 1, 1]), tuple(shades), ("dark", "light"), 0)
    task = single_label(images, 2)
    finetune._fit(
        RANDOM, 0, task, 227, FinetuneSettings(tuning=short()), 1e-3, torch.float32, silent
    )
    assert seen[0].tolist() == [-1.0, 1.0]


def test_several_labels_are_scored_by_mean_average_precision_over_crops() -> None:
    images, _, objects = scenes(6)
    targets = np.zeros((6, 3), np.float32)
    targets[np.arange(6), [o.classes[0] for o in objects]] = 1
    targets[0, 2] = IGNORED  # the only trace of a third class: it has no AP
    settings = FinetuneSettings(
        tuning=short(steps=10, optimizer="sgd", learning_rates=(1e-2,), decay_every=8),
        label_shares=(1.0,), scale=(0.9, 1.2), crops=2,
    )  # fmt: skip
    task = TargetKind(images, targets, several=True)
    (row,) = finetune.measure(RANDOM, 0, task, task, 227, settings, torch.float32).rows
    assert isinstance(row["mAP"], float) and 0.5 < row["mAP"] <= 1.0


def test_ignored_labels_do_not_move_the_loss() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    targets = torch.tensor([[1.0, IGNORED], [0.0, 1.0]])
    other = logits.clone()
    other[0, 1] = 50.0
    assert float(finetune._loss(logits, targets, True)) == float(
        finetune._loss(other, targets, True)
    )


def test_several_labels_are_a_sum_over_classes_and_a_mean_over_images() -> None:
    """SigmoidCrossEntropyLoss of philkr/voc-classification, which its learning rate belongs to."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(6, 20)), (rng.random((6, 20)) < 0.2).astype(float)
    targets[rng.random((6, 20)) < 0.1] = IGNORED
    expected = 0.0
    for logit, target in zip(logits.flat, targets.flat, strict=True):
        if target != IGNORED:
            expected += np.log1p(np.exp(logit)) - target * logit
    found = finetune._loss(torch.tensor(logits), torch.tensor(targets), True)
    assert float(found) == pytest.approx(expected / 6)


def test_the_rate_is_chosen_by_held_out_score_and_reported() -> None:
    tried = []

    def score_of(rate: float) -> float:
        tried.append(rate)
        return {1e-4: 0.5, 3e-4: 0.7, 1e-3: 0.7, 1e-1: float("nan")}[rate]

    choice = choose_rate((1e-1, 1e-3, 3e-4, 1e-4), score_of)
    assert choice.learning_rate == 3e-4  # of equals the smaller
    assert choice.tried == {"0.0001": 0.5, "0.0003": 0.7, "0.001": 0.7, "0.1": None}
    assert choose_rate((1e-3,), score_of).tried == {} and len(tried) == 4


def test_no_finite_rate_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="finite with none of them: add a smaller one"):
        choose_rate((1.0, 2.0), lambda rate: float("nan"))


def test_the_part_that_decides_is_apart_from_the_part_that_trains() -> None:
    fit, held = split_off(50, seed=3)
    assert len(held) == 10 and sorted([*fit, *held]) == list(range(50))
    assert not np.array_equal(held, split_off(50, seed=4)[1])


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    finite = optimise(
        model, lambda step: model(torch.full((1, 2), float("inf"))).sum(), short(),
        learning_rate=1e-3, seed=0,
    )  # fmt: skip
    assert not finite and torch.equal(model.weight, before)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = torch.nn.Linear(2, 1)
    torch.manual_seed(5)
    optimise(model, lambda step: model(torch.ones(1, 2)).sum(), short(), learning_rate=1e-3, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_training_says_which_step_of_which_rate_it_is_at() -> None:
    told: list[str] = []
    model, settings = torch.nn.Linear(2, 1), short()
    optimise(
        model, lambda step: model(torch.ones(1, 2)).sum(), settings,
        learning_rate=1e-3, seed=0, tell=told.append,
    )  # fmt: skip
    assert told[0] == f"learning rate 0.001, step 0/{settings.steps}"
    assert len(told) == settings.steps


def test_segmentation_learns_two_blocks() -> None:
    images, maps, _ = scenes(4)
    split = Mapped(
        ImageSet(images.keys, images.labels, images.encoded, ("none", "red", "blue"), 0),
        tuple(maps),
    )
    settings = SegmentationSettings(tuning=short(steps=30), shown=2)
    measured = segmentation.measure(RANDOM, 0, split, split, settings, torch.float32)
    (row,) = measured.rows
    assert isinstance(row["mIoU"], float) and row["mIoU"] > 0.6
    shown = [f"image, truth, prediction: {images.keys[at]}" for at in (0, 2)]  # of four
    assert list(measured.figures) == shown


def test_void_pixels_do_not_move_the_segmentation_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.randint(0, 3, (1, 4, 4), generator=torch.Generator().manual_seed(1))
    truth[:, :2] = 255
    other = logits.clone()
    other[:, :, :2] = 9.0
    assert float(segmentation._loss(logits, truth)) == float(segmentation._loss(other, truth))
    assert float(segmentation._loss(logits, truth.fill_(255))) == 0.0


def test_images_of_different_size_share_a_canvas_of_void() -> None:
    small, large = np.full((4, 6, 3), 7, np.uint8), np.full((8, 5, 3), 9, np.uint8)
    x, y = segmentation._batch(
        [small, large], [np.zeros((4, 6), np.uint8), np.ones((8, 5), np.uint8)], [False, True]
    )
    assert x.shape == (2, 3, 8, 6) and y.shape == (2, 8, 6)
    assert (y[0, 4:] == 255).all() and (y[0, :4] == 0).all() and (y[1, :, 5] == 255).all()


def test_a_mirrored_example_keeps_boxes_on_their_pixels() -> None:
    images, _, objects = scenes(1)
    split = Annotated(images, tuple(objects))
    (example,) = detection._examples(
        split, [objects[0].box], DetectionSettings(shorter=128, longer=128)
    )
    mirrored = detection._flipped(example)
    x1, y1, x2, y2 = (int(v) for v in mirrored.truth[0])
    assert (mirrored.x[y1 : y2 + 1, x1 : x2 + 1] == (230, 30, 30)).all()
    assert torch.equal(detection._flipped(mirrored).truth, example.truth)


def test_detection_learns_two_blocks() -> None:
    images, _, objects = scenes(4)
    split = Annotated(images, tuple(objects))
    rng = np.random.default_rng(0)
    regions = []
    for truth in objects:  # the true box moved a little, and boxes elsewhere
        near = truth.box + rng.integers(-6, 7, (12, 4)).astype(np.float32)
        corner = rng.integers(0, 60, (20, 2)).astype(np.float32)
        elsewhere = np.concatenate([corner, corner + rng.integers(20, 60, (20, 2))], axis=1)
        regions.append(np.concatenate([near, elsewhere]).clip(0, 127).astype(np.float32))
    settings = DetectionSettings(
        tuning=short(steps=40, batch_size=2, learning_rates=(1e-3,)),
        shorter=128, longer=128, regions=32, shown=1,
    )  # fmt: skip
    measured = detection.measure(RANDOM, 0, split, regions, split, regions, settings, torch.float32)
    (row,) = measured.rows
    assert isinstance(row["mAP all_points"], float) and row["mAP all_points"] > 0.6


def test_perfect_detections_have_an_average_precision_of_one() -> None:
    _, _, objects = scenes(6)
    found = [
        detection.Detections(
            torch.from_numpy(o.box), torch.from_numpy(o.classes) + 1, torch.ones(1)
        )
        for o in objects
    ]
    assert detection.average_precisions(found, objects, "11_points", 2) == [1.0, 1.0]
    found[0] = detection.Detections(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))
    red, blue = detection.average_precisions(found, objects, "all_points", 2)
    assert red == pytest.approx(2 / 3) and blue == 1.0


def test_the_inpaint_preset_is_refused_where_convolutions_are_needed() -> None:
    images, maps, _ = scenes(2)
    subject = resolve.untrained_ref(
        "small", "random", NetworkConfig(preset="inpaint", bottleneck=8)
    )
    split = Mapped(images, tuple(np.minimum(m, 1) for m in maps))
    with pytest.raises(ValueError, match="task 'segmentation' needs an encoder of preset alexnet"):
        settings = SegmentationSettings(tuning=short())
        segmentation.measure(subject, 0, split, split, settings, torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_voc
def test_segmentation_overfits_twenty_voc_images() -> None:
    whole = voc.read_mapped(str(VOC_MINI), "train")
    split = Mapped(whole.images.take(range(20)), whole.maps[:20])
    settings = SegmentationSettings(
        tuning=head_training.HeadTrainingSettings(
            steps=500, batch_size=4, learning_rates=(1e-3,), width=512, dropout=0.0
        ),
        side=500, flip=False,  # their full size: thin objects vanish between cells of 32 px in less
    )  # fmt: skip
    (row,) = segmentation.measure(RANDOM, 0, split, split, settings, torch.bfloat16).rows
    assert isinstance(row["mIoU"], float) and row["mIoU"] > 0.8


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_voc
def test_detection_overfits_twenty_voc_images(tmp_path: Path) -> None:
    whole = voc.read_annotated(str(VOC_MINI), "train", voc.VOC_CLASSES)
    split = Annotated(whole.images.take(range(20)), whole.objects[:20])
    files = [proposals.ensure(str(tmp_path), c) for c in proposals.chunks(split.images)]
    regions = proposals.read(files)
    settings = DetectionSettings(
        tuning=head_training.HeadTrainingSettings(
            steps=1200, batch_size=2, learning_rates=(1e-3,), width=512, dropout=0.0
        ),
        shorter=400, longer=667, flip=False,
    )  # fmt: skip
    (row,) = detection.measure(
        RANDOM, 0, split, regions, split, regions, settings, torch.bfloat16
    ).rows
    assert isinstance(row["mAP all_points"], float) and row["mAP all_points"] > 0.9

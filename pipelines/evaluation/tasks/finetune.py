"""Fine-tuning all layers for classification, with all labels or few, one label or several.

Class folders: one label per image, accuracy. PASCAL VOC: several, mean average precision; a
class that is only there as `difficult` is ignored for that image, as in the protocol the paper
used (philkr/voc-classification): random scale and crop, and scores averaged over random crops.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ce_model.networks import input_side
from ce_model.transfer import metrics
from ce_model.transfer.heads import Classifier, initialise_head
from pipelines.data import images
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data import voc
from pipelines.evaluation.data.images import decode, layout_of, pick_evenly, to_network
from pipelines.evaluation.data.targets import IGNORED, TargetKind, single_label
from pipelines.evaluation.results import Measured, Row
from pipelines.evaluation.settings import FinetuneSettings, Layout, percent, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job, Tell, fingerprint_of_images, silent
from pipelines.evaluation.tasks.head_training import Choice, fit_at_best_rate, optimise
from pipelines.evaluation.tasks.probes import (
    calibration,
    read_labelled,
    require_labelled,
    some_labels,
)
from pipelines.models.resolve import ModelRef

BEGIN_IMAGES = 32


SEVERAL_VERSION = 2  # part of the keys of VOC folders: raise it when several labels learn otherwise


def measure(
    subject: ModelRef,
    seed: int,
    train: TargetKind,
    test: TargetKind,
    side: int,
    settings: FinetuneSettings,
    dtype: torch.dtype,
    tell: Tell = silent,
) -> Measured:
    """Score on the test split for every share of labels, with the chosen learning rates."""
    rows: list[Row] = []
    choices: dict[str, object] = {}
    for share in settings.label_shares:
        groups = train.targets.argmax(1)
        part = train.take(some_labels(groups.astype(np.int64), share, seed))

        model, choice = _fit_part(subject, seed, part, side, settings, dtype, tell)
        score = None if model is None else _score(model, test, side, settings, seed)
        metric = "mAP" if train.several else "accuracy"
        rows.append({"labels": f"{percent(share)} ({len(part.images)})", metric: score})
        choices[percent(share)] = choice._asdict()
    notes = {
        "settings": settings_in_key(settings),
        "learning_rate": choices,
        "dtype": str(dtype),
        "images": f"{len(train.images)} to train on, {len(test.images)} to score",
    }
    return Measured(rows, notes, {})


def _fit_part(
    subject: ModelRef,
    seed: int,
    part: TargetKind,
    side: int,
    settings: FinetuneSettings,
    dtype: torch.dtype,
    tell: Tell,
) -> tuple[Classifier | None, Choice]:
    def fit(chosen: NDArray[np.int64], rate: float) -> Classifier | None:
        return _fit(subject, seed, part.take(chosen), side, settings, rate, dtype, tell)

    def score_of(model: Classifier, held: NDArray[np.int64]) -> float:
        return _score(model, part.take(held), side, settings, seed)

    rates = settings.tuning.learning_rates
    return fit_at_best_rate(fit, score_of, rates, len(part.images), seed)


def _fit(
    subject: ModelRef,
    seed: int,
    task: TargetKind,
    side: int,
    settings: FinetuneSettings,
    rate: float,
    dtype: torch.dtype,
    tell: Tell,
) -> Classifier | None:
    """A trained classifier; None when a loss was not finite."""
    generator = torch.Generator().manual_seed(seed)
    encoder = encoders.encoder_of(subject, seed, calibration(task.images, side))
    typical = task.images.take(pick_evenly(len(task.images), BEGIN_IMAGES))
    first = next(typical.batches(side, BEGIN_IMAGES))
    features = encoder(first).flatten(1).shape[1]
    model = Classifier(
        encoder,
        features,
        task.targets.shape[1],
        width=settings.tuning.width,
        dropout=settings.tuning.dropout,
    ).eval()
    initialise_head(model.encoder, model.fresh(), lambda: [model(first)], generator)
    place = encoders.device()
    model = model.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decoded = [decode(d, k) for d, k in zip(task.images.encoded, task.images.keys, strict=True)]
    targets = torch.from_numpy(task.targets)
    order = np.random.default_rng(seed)

    def loss_of(step: int) -> Tensor:
        chosen = order.integers(0, len(decoded), settings.tuning.batch_size)
        views = np.stack([_view(decoded[at], side, settings, task.several, order) for at in chosen])
        with torch.autocast(place.type, dtype, dtype != torch.float32):
            logits = model(to_network(views).to(place))
        return _loss(logits.float(), targets[chosen].to(place), task.several)

    finite = optimise(model, loss_of, settings.tuning, learning_rate=rate, seed=seed, tell=tell)
    return model if finite else None


def _loss(logits: Tensor, targets: Tensor, several: bool) -> Tensor:
    """Mean over the images; of several labels the sum over the classes, as in the protocol.

    The mean over 20 classes would be a learning rate 20 times smaller.
    """
    if not several:
        return F.cross_entropy(logits, targets.argmax(1))
    counted = (targets != IGNORED).float()
    each = F.binary_cross_entropy_with_logits(logits, targets.clamp_min(0), reduction="none")
    return (each * counted).sum() / len(logits)


def _view(
    image: images.ImageArray,
    side: int,
    settings: FinetuneSettings,
    own_scale: bool,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """A random size, crop and flip."""
    low, high = settings.scale
    scale = low + (high - low) * generator.random()
    shorter = round(scale * (min(image.shape[:2]) if own_scale else side))
    view = images.square(image, side, shorter, generator.random(), generator.random())
    return view[:, ::-1] if generator.random() < 0.5 else view


def _score(
    model: Classifier, task: TargetKind, side: int, settings: FinetuneSettings, seed: int
) -> float:
    logits = predict(model, task, side, settings, seed)
    if not task.several:
        return float((logits.argmax(1) == task.targets.argmax(1)).mean())
    counted = task.targets != IGNORED
    each = [
        metrics.ranking_ap(logits[:, c], task.targets[:, c] == 1, counted[:, c])
        for c in range(task.targets.shape[1])
    ]
    known = [ap for ap in each if np.isfinite(ap)]
    return float(np.mean(known)) if known else float("nan")


def predict(
    model: Classifier, task: TargetKind, side: int, settings: FinetuneSettings, seed: int
) -> NDArray[np.float64]:
    """Scores (N, classes): of the centre, or the mean over random crops."""
    place = next(model.parameters()).device
    generator = np.random.default_rng(seed)
    total = np.zeros(task.targets.shape)
    with torch.inference_mode():
        for _ in range(settings.crops):
            rows = []
            for start in range(0, len(task.images), 32):
                chosen = range(start, min(start + 32, len(task.images)))
                part = task.images.take(chosen)
                if settings.crops == 1:
                    views = part.squares(side)
                else:
                    views = np.stack(
                        [
                            _view(decode(d, k), side, settings, task.several, generator)
                            for d, k in zip(part.encoded, part.keys, strict=True)
                        ]
                    )
                rows.append(model(to_network(views).to(place)).double().cpu().numpy())
            total += np.concatenate(rows)
    return total / settings.crops


def _limits(config: EvaluateConfig) -> tuple[int, int]:
    return config.finetune.labels, config.finetune.test_images


def _require_data(uri: str, config: EvaluateConfig) -> None:
    if layout_of(uri) != "voc":  # VOC folders give several classes an image
        require_labelled(uri, _limits(config), "finetune")


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    if layout_of(job.data_uri) == "voc":
        train, test = (
            voc.read_several(job.data_uri, split, config.voc.classes)
            for split in (config.voc.train, config.voc.test)
        )
    else:
        labelled = read_labelled(job.data_uri, _limits(config), job.task)
        classes = len(labelled[0].classes)
        train, test = (single_label(part, classes) for part in labelled)
    side = input_side(job.subject.network)
    return measure(job.subject, job.seed, train, test, side, config.finetune, dtype, job.tell)


def _fingerprint(uri: str, layout: Layout, config: EvaluateConfig) -> str:
    if layout != "voc":
        return fingerprint_of_images(uri, layout, config)
    return voc.fingerprint_of_boxes(uri, config.voc, SEVERAL_VERSION)


TASK = EvaluationTask(
    name="finetune",
    settings="finetune",
    measure=_measure_job,
    across="labels",
    main="accuracy or mAP",
    require_data=_require_data,
    fingerprint=_fingerprint,
)

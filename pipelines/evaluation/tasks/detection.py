"""Fast R-CNN on the encoder, scored by VOC's average precision."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ce_model.transfer import detection, metrics
from ce_model.transfer.detection import Detections, FastRCNN, Targets
from ce_model.transfer.heads import initialise_head
from ce_model.transfer.metrics import Found, Truth
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data import proposals
from pipelines.evaluation.data.images import decode, to_network
from pipelines.evaluation.data.voc import Annotated, Objects, fingerprint_of_boxes, read_annotated
from pipelines.evaluation.results import Measured, Row, png
from pipelines.evaluation.settings import DetectionSettings, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job, Tell, silent
from pipelines.evaluation.tasks.head_training import fit_at_best_rate, optimise
from pipelines.evaluation.tasks.probes import calibration
from pipelines.models.resolve import ModelRef

BEGIN_REGIONS = 128
RULES: tuple[metrics.Rule, ...] = ("11_points", "all_points")
SHOWN_SCORE = 0.5


class Example(NamedTuple):
    """One image as the network gets it."""

    x: NDArray[np.uint8]
    """(H, W, 3)."""
    scale: float
    """Its size over that of the original."""
    proposals: Tensor
    """(P, 4) in px of `x`."""
    truth: Tensor
    """(G, 4), objects that count."""
    classes: Tensor
    """int64 (G,), 1 for the first class."""


def measure(
    subject: ModelRef,
    seed: int,
    train: Annotated,
    train_regions: Sequence[NDArray[np.float32]],
    test: Annotated,
    test_regions: Sequence[NDArray[np.float32]],
    settings: DetectionSettings,
    dtype: torch.dtype,
    tell: Tell = silent,
) -> Measured:
    """Mean average precision by both rules, with the chosen learning rate."""
    known = _examples(train, train_regions, settings)
    requested = _examples(test, test_regions, settings)
    classes = train.images.classes

    def fit(chosen: NDArray[np.int64], rate: float) -> FastRCNN | None:
        examples = [known[at] for at in chosen]
        return _fit(subject, seed, train, examples, settings, rate, dtype, tell)

    def score_of(model: FastRCNN, held: NDArray[np.int64]) -> float:
        objects = [train.objects[at] for at in held]
        found = [detect(model, known[at]) for at in held]
        return _mean(average_precisions(found, objects, "all_points", len(classes)))

    rates = settings.tuning.learning_rates
    model, choice = fit_at_best_rate(fit, score_of, rates, len(known), seed)
    notes = {
        "settings": settings_in_key(settings),
        "learning_rate": choice._asdict(),
        "dtype": str(dtype),
        "images": f"{len(known)} to train on, {len(requested)} to score",
    }
    if model is None:
        return Measured([{f"mAP {rule}": None for rule in RULES}], notes, {})
    found = [detect(model, example) for example in requested]
    each = {rule: average_precisions(found, test.objects, rule, len(classes)) for rule in RULES}
    row: Row = {f"mAP {rule}": _mean(each[rule]) for rule in RULES}
    named = zip(classes, each["all_points"], strict=True)
    notes["AP all_points"] = {name: value for name, value in named if np.isfinite(value)}
    return Measured([row], notes, _shown(test, found, settings.shown))


def _examples(
    part: Annotated, regions: Sequence[NDArray[np.float32]], settings: DetectionSettings
) -> list[Example]:
    examples = []
    for name, data, objects, boxes in zip(
        part.images.keys, part.images.encoded, part.objects, regions, strict=True
    ):
        image = decode(data, name)
        short, long = sorted(image.shape[:2])
        scale = min(settings.shorter / short, settings.longer / long)
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        x = cv2.resize(image, size, interpolation=how)
        counted = ~objects.difficult
        examples.append(
            Example(
                x,
                scale,
                torch.from_numpy(boxes) * scale,
                torch.from_numpy(objects.box[counted]) * scale,
                torch.from_numpy(objects.classes[counted]) + 1,
            )
        )
    return examples


def _flipped(example: Example) -> Example:
    last = example.x.shape[1] - 1

    def mirror(boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(1)
        return torch.stack([last - x2, y1, last - x1, y2], dim=1)

    mirrored = np.ascontiguousarray(example.x[:, ::-1])
    return example._replace(
        x=mirrored, proposals=mirror(example.proposals), truth=mirror(example.truth)
    )


def _fit(
    subject: ModelRef,
    seed: int,
    train: Annotated,
    examples: list[Example],
    settings: DetectionSettings,
    rate: float,
    dtype: torch.dtype,
    tell: Tell,
) -> FastRCNN | None:
    """A trained network; None when a loss was not finite."""
    encoders.require_network(subject, "detection")
    generator = torch.Generator().manual_seed(seed)
    encoder = encoders.encoder_of(subject, seed, calibration(train.images, 227))
    tuning = settings.tuning
    count = len(train.images.classes)
    model = FastRCNN(encoder, count, width=tuning.width, dropout=tuning.dropout).eval()
    first = examples[0]
    rois = detection.with_number([first.proposals[:BEGIN_REGIONS]])
    x = to_network(first.x[None])
    initialise_head(model.encoder, model.fresh(), lambda: list(model(x, rois)), generator)
    place = encoders.device()
    model = model.to(place)
    order = np.random.default_rng(seed)

    def loss_of(_: int) -> Tensor:
        losses = []
        for at in order.integers(0, len(examples), tuning.batch_size):
            flip = settings.flip and order.random() < 0.5
            example = _flipped(examples[at]) if flip else examples[at]
            targets = detection.choose_regions(
                example.proposals, example.truth, example.classes, settings.regions, generator
            )
            losses.append(_loss(model, example, targets, place, dtype))
        return torch.stack(losses).mean()

    finite = optimise(model, loss_of, tuning, learning_rate=rate, seed=seed, tell=tell)
    return model if finite else None


def _loss(
    model: FastRCNN, example: Example, targets: Targets, place: torch.device, dtype: torch.dtype
) -> Tensor:
    rois = detection.with_number([targets.boxes]).to(place)
    targets = Targets(*(tensor.to(place) for tensor in targets))
    with torch.autocast(place.type, dtype, dtype != torch.float32):
        logits, deltas = model(to_network(example.x[None]).to(place), rois)
    return detection.detection_loss(logits.float(), deltas.float(), targets)


def detect(model: FastRCNN, example: Example) -> Detections:
    """Objects in an image, in px of the original."""
    place = next(model.parameters()).device
    rois = detection.with_number([example.proposals]).to(place)
    with torch.inference_mode():
        logits, deltas = model(to_network(example.x[None]).to(place), rois)
    height, width = example.x.shape[:2]
    found = detection.detections(logits.cpu(), deltas.cpu(), example.proposals, height, width)
    return found._replace(boxes=found.boxes / example.scale)


def average_precisions(
    found: Sequence[Detections], objects: Sequence[Objects], rule: metrics.Rule, classes: int
) -> list[float]:
    """AP of every class; nan for a class without an object that counts."""
    truth_image = np.repeat(np.arange(len(objects)), [len(o.classes) for o in objects])
    truth_class = np.concatenate([o.classes for o in objects])
    truth_box = np.concatenate([o.box for o in objects]).astype(np.float64)
    difficult = np.concatenate([o.difficult for o in objects])
    image = np.repeat(np.arange(len(found)), [len(f.classes) for f in found])
    label = torch.cat([f.classes for f in found]).numpy() - 1
    score = torch.cat([f.scores for f in found]).double().numpy()
    box = torch.cat([f.boxes for f in found]).double().numpy()
    result = []
    for index in range(classes):
        ours, theirs = label == index, truth_class == index
        result.append(
            metrics.detection_ap(
                Found(image[ours], score[ours], box[ours]),
                Truth(truth_image[theirs], truth_box[theirs], difficult[theirs]),
                rule,
            )
        )
    return result


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _shown(test: Annotated, found: list[Detections], count: int) -> dict[str, bytes]:
    """Test images with what was found (yellow) and what is there (white)."""
    figures = {}
    for at in range(min(count, len(found))):
        name = test.images.keys[at]
        image = decode(test.images.encoded[at], name).copy()
        for box in test.objects[at].box:
            _draw(image, box.tolist(), (255, 255, 255), "")
        for box, label, score in zip(
            found[at].boxes.tolist(), found[at].classes.tolist(), found[at].scores.tolist(),
            strict=True,
        ):  # fmt: skip
            if score >= SHOWN_SCORE:
                text = f"{test.images.classes[label - 1]} {score:.2f}"
                _draw(image, box, (255, 220, 0), text)
        figures[f"found (yellow), true (white): {name}"] = png(image)
    return figures


def _draw(
    image: NDArray[np.uint8], box: list[float], colour: tuple[int, int, int], text: str
) -> None:
    x1, y1, x2, y2 = (round(value) for value in box)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2)
    if text:
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, text, (x1 + 3, max(12, y1 + 14)), font, 0.5, colour, 1)


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    parts, regions = [], []
    for split in (config.voc.train, config.voc.test):
        part = read_annotated(job.data_uri, split, config.voc.classes)
        parts.append(part)
        files = [proposals.ensure(config.store, chunk) for chunk in proposals.chunks(part.images)]
        regions.append(proposals.read(files))
    return measure(
        job.subject,
        job.seed,
        parts[0],
        regions[0],
        parts[1],
        regions[1],
        config.detection,
        dtype,
        job.tell,
    )


TASK = EvaluationTask(
    name="detection",
    settings="detection",
    measure=_measure_job,
    main="mAP, all points",
    versions=(("proposals", proposals.VERSION),),
    fingerprint=lambda uri, layout, config: fingerprint_of_boxes(uri, config.voc),
)

"""FCN-32s on the encoder, scored by mean IoU over a whole split (VOC layout or CamVid)."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ce_model.transfer import metrics
from ce_model.transfer.heads import Segmenter, initialise_head
from ce_model.transfer.metrics import VOID
from pipelines import storage
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.images import decode, pick_evenly, to_network
from pipelines.evaluation.data.voc import Mapped, read_mapped
from pipelines.evaluation.results import Measured, Row, png
from pipelines.evaluation.settings import Layout, SegmentationSettings, settings_in_key
from pipelines.evaluation.task import EvaluationTask, Job, Tell, silent
from pipelines.evaluation.tasks.head_training import fit_at_best_rate, optimise
from pipelines.evaluation.tasks.probes import calibration
from pipelines.models.resolve import ModelRef

BEGIN_IMAGES = 8
COLOURS = np.random.default_rng(2).integers(40, 256, (256, 3)).astype(np.uint8)
COLOURS[VOID] = 0


def measure(
    subject: ModelRef,
    seed: int,
    train: Mapped,
    test: Mapped,
    settings: SegmentationSettings,
    dtype: torch.dtype,
    tell: Tell = silent,
) -> Measured:
    """Mean IoU and pixel accuracy with the chosen learning rate."""

    def fit(chosen: NDArray[np.int64], rate: float) -> Segmenter | None:
        return _fit(subject, seed, _take(train, chosen), settings, rate, dtype, tell)

    def score_of(model: Segmenter, held: NDArray[np.int64]) -> float:
        return _score(model, _take(train, held), settings).mean_iou

    rates = settings.tuning.learning_rates
    model, choice = fit_at_best_rate(fit, score_of, rates, len(train.maps), seed)
    notes = {
        "settings": settings_in_key(settings),
        "learning_rate": choice._asdict(),
        "dtype": str(dtype),
        "images": f"{len(train.maps)} to train on, {len(test.maps)} to score",
    }
    if model is None:
        return Measured([{"mIoU": None, "pixel accuracy": None}], notes, {})
    found = _score(model, test, settings)
    row: Row = {"mIoU": found.mean_iou, "pixel accuracy": found.pixel_accuracy}
    names = test.images.classes
    known = zip(names, found.iou.tolist(), strict=True)
    notes["IoU"] = {name: value for name, value in known if np.isfinite(value)}
    return Measured([row], notes, _shown(model, test, settings))


def _take(part: Mapped, chosen: Sequence[int] | NDArray[np.int64]) -> Mapped:
    return Mapped(part.images.take(chosen), tuple(part.maps[at] for at in chosen))


def _fit(
    subject: ModelRef,
    seed: int,
    train: Mapped,
    settings: SegmentationSettings,
    rate: float,
    dtype: torch.dtype,
    tell: Tell,
) -> Segmenter | None:
    """A trained network; None when a loss was not finite."""
    encoders.require_network(subject, "segmentation")
    generator = torch.Generator().manual_seed(seed)
    encoder = encoders.encoder_of(subject, seed, calibration(train.images, 227))
    tuning = settings.tuning
    model = Segmenter(
        encoder, len(train.images.classes), width=tuning.width, dropout=tuning.dropout
    ).eval()
    decoded = [_smaller(decode(d, k), settings.side) for k, d in _items(train)]
    maps = [_like(m, x) for m, x in zip(train.maps, decoded, strict=True)]
    first = [to_network(x[None]) for x in decoded[:BEGIN_IMAGES]]
    alike = [x for x in first if x.shape == first[0].shape]
    initialise_head(model.encoder, model.fresh(), lambda: [model(torch.cat(alike))], generator)
    place = encoders.device()
    model = model.to(place)
    order = np.random.default_rng(seed)

    def loss_of(_: int) -> Tensor:
        chosen = order.integers(0, len(decoded), tuning.batch_size)
        flips = order.random(tuning.batch_size) < 0.5 if settings.flip else [False] * len(chosen)
        x, y = _batch([decoded[at] for at in chosen], [maps[at] for at in chosen], flips)
        with torch.autocast(place.type, dtype, dtype != torch.float32):
            logits = model(x.to(place))
        return _loss(logits.float(), y.to(place))

    finite = optimise(model, loss_of, tuning, learning_rate=rate, seed=seed, tell=tell)
    return model if finite else None


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 when all are void."""
    total = F.cross_entropy(logits, truth, ignore_index=VOID, reduction="sum")
    return total / (truth != VOID).sum().clamp_min(1)


def _batch(
    images: list[NDArray[np.uint8]], maps: list[NDArray[np.uint8]], flips: object
) -> tuple[Tensor, Tensor]:
    """Images of different size on one canvas; what is added is void."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (0, 1))
    x = np.full((len(maps), height, width, 3), 128, np.uint8)
    y = np.full((len(maps), height, width), VOID, np.int64)
    for row, (image, labels) in enumerate(zip(images, maps, strict=True)):
        step = -1 if np.asarray(flips)[row] else 1
        x[row, : labels.shape[0], : labels.shape[1]] = image[:, ::step]
        y[row, : labels.shape[0], : labels.shape[1]] = labels[:, ::step]
    return to_network(x), torch.from_numpy(y)


def _smaller(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]


def _like(labels: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label map in the size of its image."""
    if labels.shape == image.shape[:2]:
        return labels
    size = (image.shape[1], image.shape[0])
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)  # type: ignore[no-any-return]


def _items(part: Mapped) -> list[tuple[str, bytes]]:
    return list(zip(part.images.keys, part.images.encoded, strict=True))


def predict(
    model: Segmenter, image: NDArray[np.uint8], settings: SegmentationSettings
) -> NDArray[np.uint8]:
    """The class of every pixel of an image, in its full size."""
    place = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(to_network(_smaller(image, settings.side)[None]).to(place))
        logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    classes: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return classes


def _score(model: Segmenter, part: Mapped, settings: SegmentationSettings) -> metrics.Overlap:
    count = len(part.images.classes)
    total = np.zeros((count, count), np.int64)
    for (name, data), truth in zip(_items(part), part.maps, strict=True):
        total += metrics.confusion(truth, predict(model, decode(data, name), settings), count)
    return metrics.overlap(total)


def _shown(model: Segmenter, test: Mapped, settings: SegmentationSettings) -> dict[str, bytes]:
    """Image, truth and prediction side by side; evenly taken, as frames of a film are alike."""
    chosen = pick_evenly(len(test.maps), settings.shown) if settings.shown else []
    part = _take(test, chosen)
    figures = {}
    for (name, data), truth in zip(_items(part), part.maps, strict=True):
        image = decode(data, name)
        found = COLOURS[predict(model, image, settings)]
        found[truth == VOID] = 0
        strip = np.concatenate([image, COLOURS[truth], found], axis=1)
        figures[f"image, truth, prediction: {name}"] = png(strip)
    return figures


def _measure_job(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    settings = config.segmentation
    train, test = (read_mapped(job.data_uri, part) for part in (settings.train, settings.test))
    return measure(job.subject, job.seed, train, test, settings, dtype, job.tell)


def _fingerprint(uri: str, layout: Layout, config: EvaluateConfig) -> str:
    parts = (config.segmentation.train, config.segmentation.test)
    return storage.content_key([read_mapped(uri, part).fingerprint for part in parts])


TASK = EvaluationTask(
    name="segmentation",
    settings="segmentation",
    measure=_measure_job,
    main="mIoU",
    fingerprint=_fingerprint,
)

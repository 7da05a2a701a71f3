"""One measurement, wherever Ray runs it: read the data, measure, commit."""

from dataclasses import dataclass

import torch

from ce_model.networks import input_side
from pipelines.errors import UserError
from pipelines.evaluation import encoders, results
from pipelines.evaluation.config import EvaluateConfig, TaskName
from pipelines.evaluation.data import proposals, targets, voc
from pipelines.evaluation.data.images import ImageSet, layout_of, read_images, read_labels
from pipelines.evaluation.results import Measured
from pipelines.evaluation.tasks import (
    detection,
    finetune,
    inpainting,
    probes,
    retrieval,
    segmentation,
)
from pipelines.evaluation.tasks.inpainting import HoleSet
from pipelines.models.files import load_model
from pipelines.models.resolve import ModelRef


@dataclass(frozen=True, kw_only=True)
class Job:
    """A measurement that can be committed on its own."""

    task: TaskName
    subject: ModelRef | None
    """None: the classical ways to fill holes."""
    holes: tuple[HoleSet, ...]
    """What the classical methods fill."""
    data_uri: str
    database_uri: str | None
    """Where nearest-neighbour inpainting may copy from."""
    seed: int
    uri: str
    """Folder of the result."""


def perform(job: Job, config: EvaluateConfig) -> str | None:
    """Measure and commit; returns a message instead when the user has to fix something."""
    torch.set_num_threads(config.cpus_per_task)
    try:
        results.commit(job.uri, measure_job(job, config))
    except UserError as error:
        return str(error)
    return None


def require_subject(task: TaskName, subject: ModelRef, config: EvaluateConfig) -> None:
    """Refuse a model that a task cannot use; asked before any work, and where it is done."""
    side = config.frozen.side if task in ("linear", "knn") else None
    encoders.require_network(subject, task, side)


def require_data(task: TaskName, uri: str, config: EvaluateConfig) -> None:
    """Refuse before any work the data that `_labelled` would refuse."""
    if wants_labels(task, uri):
        for split, limit in zip(("train", "val"), _limits(task, config), strict=True):
            probes.require_labels(read_labels(uri, split, limit), task, uri)


def wants_labels(task: TaskName, uri: str) -> bool:
    """Whether a task needs one class for every image; VOC folders give several."""
    return task in ("linear", "knn") or (task == "finetune" and layout_of(uri) != "voc")


def _limits(task: TaskName, config: EvaluateConfig) -> tuple[int, int]:
    """At most so many training and test images with labels."""
    if task == "finetune":
        return config.finetune.labels, config.finetune.test_pictures
    return config.frozen.train_pictures, config.frozen.test_pictures


def measure_job(job: Job, config: EvaluateConfig) -> Measured:
    """The measurement itself."""
    dtype = encoders.resolve_precision(config.precision)
    if job.task == "inpainting":
        return _inpainting(job, config, dtype)
    assert job.subject is not None
    subject, side = job.subject, input_side(job.subject.network)
    require_subject(job.task, subject, config)
    if job.task == "retrieval":
        queries = read_images(job.data_uri, "val", config.retrieval.queries)
        database = read_images(job.data_uri, "train", config.retrieval.database)
        return retrieval.measure(
            subject, job.seed, queries, database, side, config.retrieval, dtype
        )
    if job.task == "detection":
        return _detection(job, config, dtype)
    if job.task == "segmentation":
        mapped = voc.read_mapped(job.data_uri, config.segmentation.train)
        asked_maps = voc.read_mapped(job.data_uri, config.segmentation.test)
        return segmentation.measure(
            subject, job.seed, mapped, asked_maps, config.segmentation, dtype
        )
    if not wants_labels(job.task, job.data_uri):
        several = voc.read_several(job.data_uri, config.voc.train, config.voc.classes)
        tested = voc.read_several(job.data_uri, config.voc.test, config.voc.classes)
        return finetune.measure(subject, job.seed, several, tested, side, config.finetune, dtype)
    train, test = _labelled(job, config)
    if job.task == "finetune":
        classes = len(train.classes)
        return finetune.measure(
            subject, job.seed,
            targets.single_label(train, classes), targets.single_label(test, classes),
            side, config.finetune, dtype,
        )  # fmt: skip
    settings = config.frozen
    side = settings.side or side
    calibrated = settings.batch_norm == "calibrated"
    encoder = encoders.encoder_of(
        subject, job.seed, probes.calibration(train, side), calibrated=calibrated
    )
    known, requested = (
        probes.Split(probes.extract(encoder, part, side, settings.values, dtype), part.labels)
        for part in (train, test)
    )
    if job.task == "knn":
        return probes.neighbours(known, requested, settings)
    return probes.linear(known, requested, len(train.classes), settings, job.seed)


def _detection(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    assert job.subject is not None
    parts, regions = [], []
    for split in (config.voc.train, config.voc.test):
        part = voc.read_annotated(job.data_uri, split, config.voc.classes)
        parts.append(part)
        files = [proposals.ensure(config.store, chunk) for chunk in proposals.chunks(part.pictures)]
        regions.append(proposals.read(files))
    return detection.measure(
        job.subject, job.seed, parts[0], regions[0], parts[1], regions[1], config.detection, dtype
    )


def _inpainting(job: Job, config: EvaluateConfig, dtype: torch.dtype) -> Measured:
    pictures = read_images(job.data_uri, "val", config.inpainting.pictures)
    database = None
    if job.database_uri is not None:
        database = read_images(job.database_uri, "train", config.inpainting.database)
    if job.subject is None:
        return inpainting.measure_classical(job.holes, pictures, database, config.inpainting)
    model = load_model(job.subject.uri)
    return inpainting.measure_model(model, pictures, database, config.inpainting, dtype)


def _labelled(job: Job, config: EvaluateConfig) -> tuple[ImageSet, ImageSet]:
    train_limit, test_limit = _limits(job.task, config)
    train = read_images(job.data_uri, "train", train_limit)
    test = read_images(job.data_uri, "val", test_limit)
    for part in (train, test):
        probes.require_labels(part.labels, job.task, job.data_uri)
    return train, test

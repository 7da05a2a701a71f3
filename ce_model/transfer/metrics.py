"""What features are worth, in numbers: average precision, mean IoU, neighbours, ridge probe.

Source of the detection rule: PASCAL VOC development kit (Everingham et al., "The PASCAL Visual
Object Classes Challenge: A Retrospective", IJCV 2015), VOCevaldet and VOCap: detections by falling
score; each takes the true box of its image that it overlaps most; IoU of at least 0.5 with a box
not taken yet is a hit; a hit on a `difficult` box counts neither way.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rule = Literal["11_points", "all_points"]

HIT_IOU = 0.5
VOID = 255  # pixels with this label are not counted


class Found(NamedTuple):
    """All detections of one class."""

    image: NDArray[np.int64]
    """(D,), number of the image."""
    score: Floats
    """(D,)."""
    box: Floats
    """(D, 4): x1, y1, x2, y2, both corners inside the box."""


class Truth(NamedTuple):
    """All objects of one class."""

    image: NDArray[np.int64]
    """(G,), number of the image."""
    box: Floats
    """(G, 4), as in Found."""
    difficult: NDArray[np.bool_]
    """(G,), objects that are neither required nor punished."""


def detection_curve(found: Found, truth: Truth) -> tuple[Floats, Floats]:
    """Recall and precision after each detection, best first; no objects: both empty."""
    required = int((~truth.difficult).sum())
    if not required:
        return np.empty(0), np.empty(0)
    taken = np.zeros(len(truth.image), bool)
    hits, misses = np.zeros(len(found.score)), np.zeros(len(found.score))
    for rank, at in enumerate(np.argsort(-found.score, kind="stable")):
        candidates = np.flatnonzero(truth.image == found.image[at])
        iou = box_iou(found.box[at], truth.box[candidates])
        best = int(iou.argmax()) if len(iou) else -1
        if best < 0 or iou[best] < HIT_IOU:
            misses[rank] = 1
        elif not truth.difficult[candidates[best]]:
            again = taken[candidates[best]]
            taken[candidates[best]] = True
            (misses if again else hits)[rank] = 1
    hit, miss = hits.cumsum(), misses.cumsum()
    return hit / required, hit / np.maximum(hit + miss, np.finfo(np.float64).tiny)


def box_iou(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box with others (N, 4)."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1
    overlap = shared.clip(0).prod(axis=1)
    area = (box[2:] - box[:2] + 1).prod()
    areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1)
    result: Floats = overlap / (area + areas - overlap)
    return result


def average_precision(recall: Floats, precision: Floats, rule: Rule) -> float:
    """Area under a curve whose precision is first made to fall; nan without a curve.

    Args:
        recall: rising, one entry per detection.
        precision: of the same length.
        rule: mean precision at recall 0, 0.1 ... 1 (VOC 2007), or the whole area (VOC 2010 on).
    """
    if not len(recall):
        return float("nan")
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "11_points":
        # Recall 0.1 may be stored as 0.09999...: half a count of slack is far below one object.
        levels = np.linspace(0, 1, 11)
        reached = [ceiling[recall >= level - 1e-9] for level in levels]
        return float(np.mean([part[0] if len(part) else 0.0 for part in reached]))
    steps = np.diff(recall, prepend=0.0)
    return float((steps * ceiling).sum())


def detection_ap(found: Found, truth: Truth, rule: Rule) -> float:
    """Average precision of one class; nan when there is no object that counts, 0 without finds."""
    if not (~truth.difficult).any():
        return float("nan")
    if not len(found.score):
        return 0.0
    return average_precision(*detection_curve(found, truth), rule)


def ranking_ap(scores: Floats, positive: NDArray[np.bool_], counted: NDArray[np.bool_]) -> float:
    """Average precision of a ranking, as in scikit-learn: no interpolation; nan without positives.

    Args:
        scores: (N,).
        positive: (N,).
        counted: (N,); False leaves an entry out (`difficult` in VOC).
    """
    scores, positive = scores[counted], positive[counted]
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = positive[order].cumsum()
    # Equal scores are one threshold.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    recall = hits[last] / hits[-1]
    precision = hits[last] / (last + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def confusion(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Counts of pixels (true class, predicted class); void pixels are left out."""
    counted = truth != VOID
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class Overlap(NamedTuple):
    """Segmentation scores."""

    mean_iou: float
    """Mean over the classes that occur in truth or prediction."""
    iou: Floats
    """(classes,); nan where a class occurs in neither."""
    pixel_accuracy: float


def overlap(counts: NDArray[np.int64]) -> Overlap:
    """Scores of a confusion matrix summed over a whole split."""
    hit = counts.diagonal().astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hit
    iou = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    total = counts.sum()
    accuracy = float(hit.sum() / total) if total else float("nan")
    return Overlap(float(np.nanmean(iou)) if total else float("nan"), iou, accuracy)


def unit_rows(features: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def nearest(queries: Floats, database: Floats, k: int) -> NDArray[np.int64]:
    """Numbers (Q, k) of the database rows with the largest cosine, best first, ties in order."""
    similarity = unit_rows(queries) @ unit_rows(database).T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def neighbour_vote(
    queries: Floats, database: Floats, labels: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The commonest label among the k nearest; of equally common ones the smallest."""
    votes = labels[nearest(queries, database, k)]
    counts = (votes[:, :, None] == np.arange(labels.max() + 1)).sum(1)
    commonest: NDArray[np.int64] = counts.argmax(1)
    return commonest


class Ridge(NamedTuple):
    """A linear map: prediction = features @ weight + bias."""

    weight: Floats
    """(D, T)."""
    bias: Floats
    """(T,)."""

    def __call__(self, features: Floats) -> Floats:
        """Predict (N, T)."""
        prediction: Floats = features @ self.weight + self.bias
        return prediction


def ridge(features: Floats, targets: Floats, penalties: Sequence[float]) -> list[Ridge]:
    """Least squares with penalty * |weight|^2, the bias free, for several penalties.

    Solved in the smaller of the two equivalent forms, (D, D) or (N, N).
    """
    mean, target_mean = features.mean(0), targets.mean(0)
    x, y = features - mean, targets - target_mean
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    right = y if wide else x.T @ y
    models = []
    for penalty in penalties:
        solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
        weight = x.T @ solved if wide else solved
        models.append(Ridge(weight, target_mean - mean @ weight))
    return models

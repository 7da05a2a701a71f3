"""Fast R-CNN on a pretrained encoder: RoI pooling, box arithmetic, training targets, detections.

A box is (x1, y1, x2, y2) in pixels, both corners inside it, counted from 0: its width is
x2 - x1 + 1, as in the PASCAL devkit. Class 0 is the background.

Source: Girshick, "Fast R-CNN", ICCV 2015, arXiv:1504.08083, sections 2.1 to 2.3, and its released
defaults; the encoder's part is Pathak et al. 2016, arXiv:1604.07379, section 5.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model.kmeans import Weighted
from ce_model.transfer.heads import HEAD_DROPOUT, HEAD_WIDTH, pad_to_grid, region_features

POOLED_SIDE = 6
DELTA_STD = (0.1, 0.1, 0.2, 0.2)  # regression targets are divided by this
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = (0.1, 0.5)
FOREGROUND_SHARE = 0.25
NMS_IOU = 0.3
MIN_SCORE = 0.05
MAX_DETECTIONS = 100
MAX_LOG_SCALE = 4.135  # log(1000 / 16): a wild prediction does not overflow


class FastRCNN(nn.Module):
    """Class scores and per-class box corrections for regions of an image.

    Shape:
        x: float (B, 3, H, W) in [-1, 1]; rois: float (R, 5), image number and box;
        result: logits (R, classes + 1) and corrections (R, classes + 1, 4).
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        width: int = HEAD_WIDTH,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Fresh fc6, fc7 and two output layers; `classes` without the background."""
        super().__init__()
        self.encoder, self.grid = region_features(encoder)
        values = self.grid.channels * POOLED_SIDE**2
        self.fc6, self.fc7 = nn.Linear(values, width), nn.Linear(width, width)
        self.score, self.correct = nn.Linear(width, classes + 1), nn.Linear(width, 4 * classes + 4)
        self.dropout = dropout

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Judge regions."""
        features = self.encoder(pad_to_grid(x, self.grid.stride, self.grid.padding))
        pooled = roi_pool(features, rois, POOLED_SIDE, 1 / self.grid.stride).flatten(1)
        for layer in (self.fc6, self.fc7):
            pooled = F.dropout(F.relu(layer(pooled)), self.dropout, self.training)
        return self.score(pooled), self.correct(pooled).unflatten(1, (-1, 4))

    def fresh(self) -> list[list[Weighted]]:
        """Layers that the encoder did not bring, in order; the last group makes the outputs."""
        return [[self.fc6], [self.fc7], [self.score, self.correct]]


def roi_pool(features: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """The maximum over each of side x side bins of every region.

    Bins are rounded outwards, so that they may share a row or a column and none is empty: the
    rule of the released Fast R-CNN, which is also that of adaptive max pooling on the region.

    Shape:
        features: (B, C, H, W); rois: (R, 5), image number and box in px; result:
        (R, C, side, side).
    """
    last = torch.tensor([features.shape[3], features.shape[2]] * 2, device=rois.device) - 1
    corners = torch.floor(rois[:, 1:] * scale + 0.5).long().clamp_min(0).minimum(last)
    regions = [
        F.adaptive_max_pool2d(features[number, :, y1 : max(y1, y2) + 1, x1 : max(x1, x2) + 1], side)
        for number, (x1, y1, x2, y2) in zip(
            rois[:, 0].long().tolist(), corners.tolist(), strict=True
        )
    ]
    return torch.stack(regions) if regions else features.new_zeros(0, features.shape[1], side, side)


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4): (N, M)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low + 1).clamp_min(0).prod(2)
    return shared / (_area(a)[:, None] + _area(b)[None] - shared)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def corrections(boxes: Tensor, truth: Tensor) -> Tensor:
    """What moves `boxes` onto `truth`, in units of DELTA_STD: (N, 4)."""
    (center, size), (true_center, true_size) = _center_size(boxes), _center_size(truth)
    delta = torch.cat([(true_center - center) / size, (true_size / size).log()], dim=1)
    return delta / delta.new_tensor(DELTA_STD)


def apply_corrections(boxes: Tensor, delta: Tensor) -> Tensor:
    """Boxes (N, 4) moved by corrections (N, 4); the inverse of `corrections`."""
    center, size = _center_size(boxes)
    delta = delta * delta.new_tensor(DELTA_STD)
    center = center + delta[:, :2] * size
    size = size * delta[:, 2:].clamp_max(MAX_LOG_SCALE).exp()
    return torch.cat([center - (size - 1) / 2, center + (size - 1) / 2], dim=1)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2] + 1


class Targets(NamedTuple):
    """What the network shall say about the chosen regions of one image."""

    boxes: Tensor
    """(R, 4)."""
    classes: Tensor
    """int64 (R,), 0 is background."""
    deltas: Tensor
    """(R, 4); meaningful where the class is not background."""


def choose_regions(
    proposals: Tensor, truth: Tensor, classes: Tensor, count: int, generator: torch.Generator
) -> Targets:
    """Regions to learn from: up to a quarter with an object, the rest near misses.

    Args:
        proposals: (P, 4); the true boxes are added to them.
        truth: (G, 4) boxes of objects that count (not `difficult`).
        classes: int64 (G,), 1 for the first class.
        count: regions to choose; fewer come back where there are not enough.
        generator: the only source of randomness.
    """
    boxes = torch.cat([truth, proposals])
    if len(truth):
        best, match = overlaps(boxes, truth).max(1)
    else:
        best, match = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.long)
    foreground = _some(best >= FOREGROUND_IOU, round(count * FOREGROUND_SHARE), generator)
    near = (best >= BACKGROUND_IOU[0]) & (best < BACKGROUND_IOU[1])
    background = _some(near, count - len(foreground), generator)
    if not len(background):  # no near miss: anything that is not an object
        background = _some(best < BACKGROUND_IOU[1], count - len(foreground), generator)
    chosen = torch.cat([foreground, background])
    labels = torch.zeros(len(chosen), dtype=torch.long)
    deltas = boxes.new_zeros(len(chosen), 4)
    hits = slice(0, len(foreground))
    if len(foreground):
        labels[hits] = classes[match[foreground]]
        deltas[hits] = corrections(boxes[foreground], truth[match[foreground]])
    return Targets(boxes[chosen], labels, deltas)


def _some(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    places = mask.nonzero().flatten()
    return places[torch.randperm(len(places), generator=generator)[:count]]


def detection_loss(scores: Tensor, deltas: Tensor, targets: Targets) -> Tensor:
    """Cross entropy of the class, plus smooth L1 of the box of the true class (not background)."""
    classification = F.cross_entropy(scores, targets.classes)
    objects = targets.classes.nonzero().flatten()
    own = deltas[objects, targets.classes[objects]]
    localisation = F.smooth_l1_loss(own, targets.deltas[objects], reduction="sum")
    return classification + localisation / max(1, len(targets.classes))


class Detections(NamedTuple):
    """Objects found in one image, best first."""

    boxes: Tensor
    """(D, 4)."""
    classes: Tensor
    """int64 (D,), 1 for the first class."""
    scores: Tensor
    """(D,), probability of the class."""


def detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, height: int, width: int
) -> Detections:
    """Boxes that survive score, non-maximum suppression per class, and the limit per image."""
    probabilities = logits.softmax(1)
    last = proposals.new_tensor([width - 1, height - 1] * 2)
    boxes, classes, scores = [], [], []
    for index in range(1, logits.shape[1]):
        sure = probabilities[:, index] > MIN_SCORE
        moved = apply_corrections(proposals[sure], deltas[sure, index]).clamp_min(0).minimum(last)
        score = probabilities[sure, index]
        kept = suppress(moved, score, NMS_IOU)
        boxes.append(moved[kept])
        scores.append(score[kept])
        classes.append(torch.full((len(kept),), index))
    return _best(Detections(torch.cat(boxes), torch.cat(classes), torch.cat(scores)))


def _best(found: Detections) -> Detections:
    order = found.scores.argsort(descending=True, stable=True)[:MAX_DETECTIONS]
    return Detections(found.boxes[order], found.classes[order], found.scores[order])


def suppress(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Non-maximum suppression: numbers of the boxes kept, best first."""
    order = scores.argsort(descending=True, stable=True)
    shared = overlaps(boxes[order], boxes[order]) > limit
    kept: list[int] = []
    alive = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if alive[place]:
            kept.append(place)
            alive &= ~shared[place]
    return order[torch.tensor(kept, dtype=torch.long)]


def with_number(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of several images as rois (R, 5)."""
    return torch.cat([F.pad(box, (1, 0), value=float(number)) for number, box in enumerate(boxes)])

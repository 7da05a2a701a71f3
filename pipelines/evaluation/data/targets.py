"""The target of an image: one class, several, or ignored."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.data.images import ImageSet

IGNORED = -1.0


class TargetKind(NamedTuple):
    """Images with what shall be said about them."""

    images: ImageSet
    targets: NDArray[np.float32]
    """(N, classes): 1, 0, or IGNORED."""
    several: bool
    """Whether an image may belong to several classes (VOC)."""

    def take(self, chosen: NDArray[np.int64]) -> "TargetKind":
        """Some of the images."""
        return TargetKind(self.images.take(chosen), self.targets[chosen], self.several)


def single_label(images: ImageSet, classes: int) -> TargetKind:
    """A task from class folders."""
    targets = np.eye(classes, dtype=np.float32)[images.labels]
    return TargetKind(images, targets, several=False)

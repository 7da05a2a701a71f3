"""What an image is to be told as: one class, several, or ignored."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.data.images import Pictures

IGNORED = -1.0


class Task(NamedTuple):
    """Pictures with what shall be said about them."""

    pictures: Pictures
    targets: NDArray[np.float32]
    """(N, classes): 1, 0, or IGNORED."""
    several: bool
    """Whether a picture may belong to several classes (VOC)."""

    def take(self, chosen: NDArray[np.int64]) -> "Task":
        """Some of the pictures."""
        return Task(self.pictures.take(chosen), self.targets[chosen], self.several)


def single_label(pictures: Pictures, classes: int) -> Task:
    """A task from class folders."""
    targets = np.eye(classes, dtype=np.float32)[pictures.labels]
    return Task(pictures, targets, several=False)

"""What a pretext shows of each image, and the right answers."""

from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """A batch for a pretext.

    Shape:
        views: float (B, V, 3, s, s) in [-1, 1], V views of each image; classes: int64 (B, Q), the
        right answer to each of Q questions.
    """

    views: Tensor
    classes: Tensor

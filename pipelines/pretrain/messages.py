"""Messages of rank 0 to the driver during training."""

from typing import Any, NamedTuple


class CurvePoint(NamedTuple):
    """Values of the curves at a step; the history in a checkpoint is a list of these."""

    step: int
    time: float
    """Seconds since 1970."""
    values: dict[str, float]


class PanelReady(NamedTuple):
    """Images for the panel, by column name: uint8 (N, S, S, 3) or bool (N, S, S)."""

    step: int
    images: dict[str, Any]


class Resumed(NamedTuple):
    """Training continues at a checkpoint."""

    step: int
    history: list[dict[str, Any]]
    """Records {step, time, values} of the curves so far."""


class Diverged(NamedTuple):
    """Too many updates in a row were not finite."""

    step: int
    updates: int


class StepsDone(NamedTuple):
    """How far training is, at most once a second: there are fewer points of the curves."""

    step: int


class Note(NamedTuple):
    """A line for the screen."""

    text: str


Message = Note | CurvePoint | PanelReady | Resumed | Diverged | StepsDone

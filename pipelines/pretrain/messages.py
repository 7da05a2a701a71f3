"""Messages of the training processes to the driver."""

from typing import Any, NamedTuple

from pipelines.storage import Use


class CurvePoint(NamedTuple):
    """Values of the curves at a step; the history in a checkpoint is a list of these."""

    step: int
    time: float
    """Seconds since 1970."""
    values: dict[str, float]


class SystemPoint(NamedTuple):
    """What a node is busy with; of this process alone, so in no checkpoint."""

    step: int
    time: float
    values: dict[str, float]


class TraceReady(NamedTuple):
    """A trace of some steps is in the store."""

    uri: str


class CheckpointWritten(NamedTuple):
    """The checkpoint of a step can be read."""

    step: int


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
    """Too many updates in a row were not finite, and the run is over."""

    step: int
    updates: int
    rollbacks: int = 0
    """How often the run had gone back to a checkpoint before."""


class FaultFound(NamedTuple):
    """What one rank found in its share of the batch of a step that was not finite."""

    step: int
    rank: int
    where: str
    keys: tuple[str, ...]
    """Of the images at fault; of all of this rank where no single one is."""


class StepsDone(NamedTuple):
    """How far training is, at most once a second: there are fewer points of the curves."""

    step: int


class DataRead(NamedTuple):
    """What a data task read through its node's cache of shards, since it last told."""

    use: Use
    warnings: tuple[str, ...]


class Note(NamedTuple):
    """A line for the screen."""

    text: str


Message = (
    CheckpointWritten
    | CurvePoint
    | DataRead
    | Diverged
    | FaultFound
    | Note
    | PanelReady
    | Resumed
    | StepsDone
    | SystemPoint
    | TraceReady
)

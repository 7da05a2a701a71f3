"""What the evaluation knows of a task: one record, at the end of the task's own file.

A new task is a file in `tasks/` that ends with a `TASK`, its name, data and settings in
`settings.py`, their group in `config.py`, and its place in `catalogue.py`. Planning, measuring and
the report take the rest from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pipelines import storage
from pipelines.data import manifest
from pipelines.evaluation import encoders
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data.images import read_images
from pipelines.evaluation.results import Measured
from pipelines.evaluation.settings import LAYOUTS, Layout, TaskName, settings_in_key
from pipelines.models.resolve import ModelRef

if TYPE_CHECKING:  # which imports this file
    from pipelines.evaluation.tasks.inpainting import HoleSet


Tell = Callable[[str], None]
"""Told now and then how far a measurement is that takes long."""


def silent(text: str) -> None:
    """Tell nobody."""


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
    tell: Tell = field(default=silent, compare=False, repr=False)


def fingerprint_of_images(uri: str, layout: Layout, config: EvaluateConfig) -> str:
    """Content key of the images and labels of a folder or dataset."""
    if layout == "prepared":
        return manifest.read_manifest(uri).fingerprint
    splits = ("val",) if layout == "images" else ("train", "val")
    return storage.content_key([read_images(uri, split, 0).fingerprint for split in splits])


def require_any_data(uri: str, config: EvaluateConfig) -> None:
    """Accept all data of the layouts that the task takes."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """A task of the evaluation."""

    name: TaskName
    settings: str
    """Field of `EvaluateConfig` with its settings."""
    measure: Callable[[Job, EvaluateConfig, torch.dtype], Measured]
    """The measurement itself."""
    tables: tuple[str, ...] = ()
    """Its report has one table per value of these columns."""
    across: str | None = None
    """Column whose values become the columns of a table; None: the scores are the columns."""
    main: str | None = None
    """What its column in the overview of a report is called; None: it has none."""
    seeded: bool = True
    """Whether the seed of the measurement changes anything."""
    versions: tuple[tuple[str, int], ...] = ()
    """Versions of what it is computed from, by name, for the key."""
    fingerprint: Callable[[str, Layout, EvaluateConfig], str] = fingerprint_of_images
    """Content key of everything that it could read at a URI, and of how it is learned."""
    require_data: Callable[[str, EvaluateConfig], None] = require_any_data
    """Refuse before any work the data that the measurement would refuse."""
    probe_side: Callable[[EvaluateConfig], int | None] = lambda config: None
    """Side of the images where it is not that of the network, px."""

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Data that it can use."""
        return LAYOUTS[self.name]

    def require_subject(self, subject: ModelRef, config: EvaluateConfig) -> None:
        """Refuse a model that the task cannot use; before any work, and where it is done."""
        encoders.require_network(subject, self.name, self.probe_side(config))

    def settings_of(self, config: EvaluateConfig) -> dict[str, Any]:
        """The settings that its result depends on."""
        return {**settings_in_key(getattr(config, self.settings)), **dict(self.versions)}

"""From the training processes to the person and the tracking server, without blocking either.

Rank 0 posts records to a small actor and never waits; the driver drains it, draws the progress
and hands the records to the recorder.
"""

import time
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0  # a log file gets a line this often instead of a bar


class Mailbox:
    """Holds what rank 0 posted until the driver takes it."""

    def __init__(self) -> None:
        """Start empty."""
        self._posted: list[dict[str, Any]] = []

    def post(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self._posted.append(message)

    def drain(self) -> list[dict[str, Any]]:
        """All messages since the last call, in order."""
        posted, self._posted = self._posted, []
        return posted


def mailbox() -> Any:
    """The handle of a new mailbox actor."""
    return ray.remote(num_cpus=0)(Mailbox).remote()


class ProgressReport:
    """A bar with step, losses, rate and time left; on a log file a line now and then."""

    def __init__(self, console: Console, steps: int) -> None:
        """Show nothing until the first record."""
        self._console = console
        self._steps = steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._printed_at = 0.0

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show a record of the curves."""
        losses = "  ".join(
            f"{short} {values[name]:.4f}"
            for short, name in (
                ("rec", "loss/reconstruction"),
                ("joint", "loss/joint"),
                ("D", "loss/discriminator"),
            )
            if name in values
        )
        text = f"{losses}  {values['images_per_second']:.0f} images/s"
        if self._console.is_terminal:
            self._draw(step, text)
        elif time.monotonic() - self._printed_at > LINE_EVERY_S or step == self._steps:
            self._printed_at = time.monotonic()
            left = (self._steps - step) * values["seconds_per_step"]
            self._console.print(
                f"step {step}/{self._steps}  {text}  {left:.0f} s left", highlight=False
            )

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, step: int, text: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._steps, text="")
        self._bar.update(self._task, completed=step, text=text)


def memory_of_tree() -> int:
    """Bytes of memory of this process and all below it, shared pages counted once (PSS)."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended while we looked
    return total

"""What a person sees while a stage works: a bar on a terminal, a line now and then in a log.

The work may be elsewhere in the cluster: it posts to a `Mailbox`, and the driver drains that.
"""

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipelines.errors import redact

LINE_EVERY_S = 15.0  # in a log
WIDE = 100  # columns of a terminal from which the time that has passed is shown, too
BAR_COLUMNS = (4, 24)  # least and greatest width of the bar: what is said goes before it


def plain_console(*, stderr: bool = True, soft_wrap: bool = False) -> Console:
    """A console that shows text as it is: paths and names may hold what rich takes for markup.

    Only a user's name and password in a URI are left out.
    """
    return _Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)


class _Console(Console):
    """A class because rich has no other place where all texts pass."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a line or of a table's cell."""
        return super().render_str(redact(text), **options)


class ProgressDisplay:
    """How far some work is, at what rate, and how long it will take."""

    def __init__(
        self,
        console: Console,
        what: str,
        total: int | None,
        *,
        line_every_s: float = LINE_EVERY_S,
    ) -> None:
        """Show nothing until the first update; None as the total where nobody knows it."""
        self._console, self._what, self._total = console, what, total
        self._line_every_s = line_every_s
        self._began = self._printed_at = time.monotonic()
        self._printed: int | None = None
        self._done, self._done_at = 0, self._began
        self._bar: Progress | None = None
        self._blocks = BarColumn(bar_width=BAR_COLUMNS[1])
        self._task = TaskID(0)

    def __enter__(self) -> "ProgressDisplay":
        """The work begins: an empty bar shows that, before anything is done."""
        if self._console.is_terminal:
            self._draw(0, "", "")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self.close()

    def update(self, done: int, text: str = "", *, left_s: float | None = None) -> None:
        """Show that `done` of the total are done.

        Args:
            done: so far.
            text: rates and losses, in the words of the work.
            left_s: seconds that it will still take, infinite where nobody knows; left out, as
                long per item as so far. Nothing is promised once they are over.
        """
        now = time.monotonic()
        if self._total is not None:
            done = min(done, self._total)  # a task that Ray runs again counts its steps again
        if done != self._done:
            self._done, self._done_at = done, now
        if left_s is None and done and self._total is not None:
            whole_s = (self._done_at - self._began) / done * self._total
            left_s = whole_s - (now - self._began)
        left = ""
        if left_s is not None and 0 <= left_s < math.inf and done != self._total:
            left = f"{duration(left_s)} left"
        if self._console.is_terminal:
            self._draw(done, text, left)
        elif now - self._printed_at >= self._line_every_s or (
            done == self._total and self._printed != done
        ):
            self._printed_at, self._printed = now, done
            words = (f"{self._what} {self._count(done)}", text, left)
            self._console.print("  ".join(filter(None, words)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _count(self, done: int) -> str:
        return f"{done:,}" if self._total is None else f"{done}/{self._total}"

    def _draw(self, done: int, text: str, left: str) -> None:
        is_wide = self._console.width >= WIDE
        text = text if is_wide else " ".join(text.split())
        words = (self._what, self._count(done), text, left, "0:00:00" if is_wide else "")
        taken = sum(len(word) + 1 for word in words)
        least, greatest = BAR_COLUMNS
        self._blocks.bar_width = max(least, min(greatest, self._console.width - taken))
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                self._blocks,
                TextColumn("{task.fields[count]}"),
                TextColumn("{task.fields[text]}", markup=False),
                *([TimeElapsedColumn()] if is_wide else []),
                TextColumn("{task.fields[left]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._what, total=self._total, count=self._count(done), text="", left=""
            )
        self._bar.update(self._task, completed=done, count=self._count(done), text=text, left=left)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"

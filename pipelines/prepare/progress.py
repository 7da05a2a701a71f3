"""What a person sees while a job runs: images/s, MB/s, time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False)
LINE_EVERY_S = 30.0  # where there is no terminal, such as in a job's log


class _Rate(ProgressColumn):
    """Images and bytes per second since the pass began."""

    def render(self, task: Task) -> Text:
        """One cell of the progress line."""
        return Text(rates(task.fields["images"], task.fields["bytes"], task.elapsed or 0.0))


def rates(images: int, size: int, seconds: float) -> str:
    """`812 images/s  24.1 MB/s`."""
    seconds = max(seconds, 1e-9)
    return f"{images:,} images  {images / seconds:,.0f} images/s  {size / seconds / 1e6:,.1f} MB/s"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int, int], None]]:
    """Show a pass over `total` units of work; yields `advance(units, images, bytes)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began = shown = time.monotonic()
    images = size = done = 0
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as display:
        task = display.add_task(what, total=total, images=0, bytes=0)

        def advance(units: int, more_images: int, more_bytes: int) -> None:
            nonlocal images, size, done, shown
            images, size, done = images + more_images, size + more_bytes, done + units
            display.update(task, advance=units, images=images, bytes=size)
            now = time.monotonic()
            if not sys.stderr.isatty() and now - shown >= LINE_EVERY_S:
                shown = now
                left = (now - began) / max(done, 1) * (total - done)
                console.print(f"{what}  {rates(images, size, now - began)}  {left:,.0f} s left")

        yield advance
    if not sys.stderr.isatty():
        console.print(f"{what}  {rates(images, size, time.monotonic() - began)}")

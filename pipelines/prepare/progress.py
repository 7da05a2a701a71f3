"""What a person sees while a pass runs: images/s, MB/s, time left."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pipelines.prepare import plan
from pipelines.prepare.sources.piece import Piece
from pipelines.runtime.progress import ProgressDisplay, plain_console

LOOK_EVERY_S = 1.0

console = plain_console()


def rates(images: int, size: int, seconds: float) -> str:
    """`812 images  406 images/s  24.1 MB/s`."""
    seconds = max(seconds, 1e-9)
    return f"{images:,} images  {images / seconds:,.0f} images/s  {size / seconds / 1e6:,.1f} MB/s"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int, int], None]]:
    """Show a pass over `total` units of work; yields `advance(units, images, bytes)`."""
    began = time.monotonic()
    images = size = done = 0
    with ProgressDisplay(console, what, total) as display:

        def advance(units: int, more_images: int, more_bytes: int) -> None:
            nonlocal images, size, done
            images, size, done = images + more_images, size + more_bytes, done + units
            display.update(done, rates(images, size, time.monotonic() - began))

        yield advance


def listing_progress(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces; shows how many there are so far, where that takes longer than a moment."""
    display = ProgressDisplay(console, "listing", None)
    began = looked = time.monotonic()
    size = 0
    try:
        for count, piece in enumerate(pieces, 1):
            yield piece
            size += plan.weight(piece)
            now = time.monotonic()
            if now - looked > LOOK_EVERY_S:
                looked = now
                rate = f"{count / (now - began):,.0f} per s"
                display.update(count, f"{size / 1e6:,.1f} MB  {rate}")
    finally:
        display.close()

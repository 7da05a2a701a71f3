"""One image as a source has it, and what is met beside the images."""

from collections import Counter
from typing import NamedTuple

from pipelines.prepare.normalise import Fault

MAX_FILE_BYTES = 128 << 20  # of one image's file; a larger one is never read


class Member(NamedTuple):
    """One image as the source has it: its bytes, or why there are none."""

    key: str
    data: bytes | None
    split: str | None
    class_name: str | None
    fault: Fault | None = None
    uri: str | None = None
    """Where its bytes can be read again; None inside an archive."""
    is_asked: bool = False
    """Whether a list names it, so that it should be an image whatever its name says."""


class Beside(NamedTuple):
    """What is met beside the images of a piece."""

    others: Counter[str]
    """What is not read, by kind."""
    folders: Counter[str]
    """Images by folder of the tree, where names alone placed them (see `layout`)."""

    @classmethod
    def empty(cls) -> "Beside":
        """Nothing yet."""
        return cls(Counter(), Counter())


def too_large(size: int) -> Fault | None:
    """What becomes of a file of so many bytes that it is never read; None where it is read."""
    if size <= MAX_FILE_BYTES:
        return None
    return Fault("too_large", f"{size} bytes; at most {MAX_FILE_BYTES} are read")

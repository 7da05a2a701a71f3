"""What is in a source and not read, in words."""

from collections import Counter

from pipelines.errors import counted

NOUNS = ("image", "archive", "cell", "file")  # that kinds of what is not read begin with
SHOWN_KINDS = 8


def not_read(others: Counter[str]) -> str:
    """What is in a source and not read: `3 .xml, 1 README`."""
    shown = ", ".join(_counted(count, kind) for kind, count in others.most_common(SHOWN_KINDS))
    more = len(others) - SHOWN_KINDS
    return shown + (f" and {more} more kinds" if more > 0 else "")


def _counted(count: int, kind: str) -> str:
    noun, space, rest = kind.partition(" ")
    return counted(count, noun) + space + rest if noun in NOUNS else f"{count:,} {kind}"

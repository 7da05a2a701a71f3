"""The classes of a dataset by label, and which spellings of names are one class."""

import unicodedata
from collections.abc import Iterable


def same_classes(old: tuple[str, ...], stored: Iterable[str]) -> dict[str, str]:
    """Spelling -> class; two spellings of one text, as macOS and Linux write it, are one class."""
    by_text = {_text(name): name for name in reversed(old)}
    found = {}
    for name in sorted(name for name in stored if name):
        text = _text(name)
        if text in stored:
            by_text.setdefault(text, text)
        found[name] = name if name in old else by_text.setdefault(text, name)
    return found


def is_same(one: str | None, other: str) -> bool:
    """Whether two names are one class."""
    return one is not None and (one == other or _text(one) == _text(other))


def _text(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def merge_classes(old: tuple[str, ...], listed: Iterable[str]) -> tuple[str, ...]:
    """Class names by label: those that have one keep it; numbers are ordered as numbers."""
    new = {name for name in listed if name} - set(old)
    by_number = all(name.isdecimal() for name in new)
    return (*old, *sorted(new, key=(lambda name: (int(name), name)) if by_number else str))

"""Keys and contents as sorted arrays of 16-byte digests: few bytes per image, no strings.

Two different texts share 128 bits of sha256 with a chance that no collection of images reaches.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.bytes_]  # dtype S16
OWN, FREE, OPEN = 0, 1, 2  # whether an image has a split of its own; see `ingest.Shuffle.group`
SPILLED = np.dtype(
    [("key", "S16"), ("order", "<u8"), ("hash", "<u8"), ("class", "<u4"), ("kind", "u1")]
)
"""An image between the passes: key, place in the shuffle, what it is drawn by, class, and kind."""


def of_key(key: str) -> bytes:
    """Digest of a key."""
    return hashlib.sha256(key.encode()).digest()[:16]


def of_quarantined(key: str, sha256: str | None) -> bytes:
    """Digest of a quarantined image, by its key and, where it could be read, its bytes."""
    return of_key(f"{sha256}/{key}")


def of_content(sha256: str | bytes) -> bytes:
    """Digest of a content by its sha256, hex or raw."""
    return (bytes.fromhex(sha256) if isinstance(sha256, str) else sha256)[:16]


def hash64(purpose: str, seed: int, name: str) -> int:
    """A number of 64 bits that follows from its arguments on any machine."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def sorted_set(found: Iterable[bytes]) -> Digests:
    """Sorted digests."""
    return np.sort(np.fromiter(found, dtype="S16"))


def find(known: Digests, digest: bytes) -> int | None:
    """The place of a digest in a sorted set; None where it is not in it."""
    if not len(known):  # of a new dataset
        return None
    at = int(np.searchsorted(known, np.bytes_(digest)))
    # numpy gives digests back without zeros at their end
    return at if at < len(known) and known[at] == digest.rstrip(b"\0") else None


def find_repeated(parts: Iterable[NDArray[np.void]]) -> dict[bytes, int]:
    """Keys that occur more than once -> the smallest place in the shuffle among their images."""
    together = np.concatenate([np.empty(0, SPILLED), *parts])
    together = together[np.argsort(together["key"], kind="stable")]
    if not len(together):
        return {}
    twin = together["key"][1:] == together["key"][:-1]
    again = np.append(twin, False) | np.insert(twin, 0, False)
    winners: dict[bytes, int] = {}
    for key, order in zip(
        together["key"][again].tolist(), together["order"][again].tolist(), strict=True
    ):
        key = key.ljust(16, b"\0")  # numpy drops zeros at the end
        winners[key] = min(order, winners.get(key, order))
    return winners

"""What lies in a folder: bytes, files, and when it last changed."""

from datetime import datetime
from typing import Any, NamedTuple

from pipelines.storage.objects import filesystem, retrying


class Usage(NamedTuple):
    """Of everything below a folder."""

    bytes: int
    files: int
    changed: float
    """When the newest file was written, seconds since 1970; 0 where there is none."""


def usage(uri: str) -> Usage:
    """Add up a folder; nothing where it does not exist."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = retrying(lambda: fs.find(path, detail=True), f"listing {uri}").values()
    return Usage(
        sum(int(info["size"] or 0) for info in found),
        len(found),
        max((_changed(info) for info in found), default=0.0),
    )


def _changed(info: dict[str, Any]) -> float:
    """Local files have `mtime`, objects of S3 `LastModified`; of others nobody knows: just now."""
    found = info.get("mtime", info.get("LastModified"))
    if isinstance(found, datetime):
        return found.timestamp()
    return float("inf") if found is None else float(found)

"""What lies under a URI: folders, children, all files."""

import heapq
import json
import os
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import fsspec

from pipelines.storage.objects import (
    absolute,
    filesystem,
    is_folder,
    is_local,
    join,
    local_path,
    retrying,
)

NAMES_AT_ONCE = 50_000  # of one local folder


SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")  # of a disk's root


S3_PAGE = 1000  # entries of a listing per request, the most that S3 gives


def folders_among(uri: str, names: Collection[str]) -> list[str]:
    """Which of these names are folders directly below a folder, sorted."""
    if is_local(uri):
        with os.scandir(local_path(absolute(uri))) as entries:
            return sorted(e.name for e in entries if e.name in names and e.is_dir())
    return sorted(name for name in names if is_folder(join(uri, name)))


def children(uri: str) -> list[str]:
    """Names directly under a folder, sorted; none when it does not exist."""
    if is_local(uri):
        try:
            return sorted(os.listdir(local_path(absolute(uri))))
        except (FileNotFoundError, NotADirectoryError):
            return []
    fs, path = filesystem(uri)
    try:
        return sorted({name for name, _ in _entries(fs, path.rstrip("/") + "/") if name})
    except FileNotFoundError:
        return []


def walk(uri: str) -> Iterator[tuple[str, int]]:
    """Relative name and bytes of every file below a folder, sorted within each folder.

    Of a local folder at most NAMES_AT_ONCE names are held in memory, of a bucket's one page.
    Folders that an operating system keeps for itself at the root of a disk are passed over where
    they may not be read. Links to files are followed, and links to folders unless they lead back to
    a folder above.
    """
    if is_local(uri):
        yield from _walk_local(local_path(absolute(uri)), "", frozenset())
        return
    fs, root = filesystem(uri)
    yield from _walk_remote(fs, root.rstrip("/"), "")


def _walk_local(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, int]]:
    here = folder.resolve()
    if here in above:
        return
    for name in _names(folder):
        path = os.path.join(folder, name)
        try:
            found = os.stat(path)
        except OSError:  # a dangling link, say: whoever reads it will tell
            yield prefix + name, 0
            continue
        if stat.S_ISDIR(found.st_mode):
            try:
                yield from _walk_local(Path(path), f"{prefix}{name}/", above | {here})
            except PermissionError:
                if name not in SYSTEM_FOLDERS:
                    raise
        elif stat.S_ISREG(found.st_mode):
            yield prefix + name, found.st_size


def _names(folder: Path) -> Iterator[str]:
    """Names in a local folder, sorted by their bytes; many in runs on disk that are merged."""
    with ExitStack() as spools, os.scandir(folder) as entries:
        names = (entry.name for entry in entries)  # an entry takes seven times as much
        runs: list[Iterator[str]] = []
        while run := sorted(islice(names, NAMES_AT_ONCE), key=os.fsencode):
            if not runs and len(run) < NAMES_AT_ONCE:
                yield from run
                return
            spool = spools.enter_context(tempfile.TemporaryFile("w+", prefix="names-"))
            spool.writelines(json.dumps(name) + "\n" for name in run)
            spool.seek(0)
            runs.append(map(json.loads, spool))
        yield from heapq.merge(*runs, key=os.fsencode)


def _walk_remote(
    fs: fsspec.AbstractFileSystem, root: str, prefix: str
) -> Iterator[tuple[str, int]]:
    for name, size in _entries(fs, f"{root}/{prefix}"):
        if size is None:
            yield from _walk_remote(fs, root, f"{prefix}{name}/")
        elif name:  # not the marker object of the folder itself
            yield prefix + name, size


def _entries(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[tuple[str, int | None]]:
    """Names in a remote folder, which ends with a slash, and their bytes; None for folders.

    Sorted, each name once. fsspec would hold 1 kB for every object that lies directly in it.
    """
    if "s3" in fs.protocol:
        yield from _s3_entries(fs, folder)
        return
    fs.invalidate_cache()
    found = retrying(lambda: fs.ls(folder.rstrip("/"), detail=True), f"listing {folder}")
    for entry in sorted(found, key=lambda entry: str(entry["name"])):
        name = str(entry["name"])
        if entry["type"] == "directory":
            yield name.rstrip("/").rsplit("/", 1)[-1], None
        else:
            yield name.rsplit("/", 1)[-1], int(entry["size"] or 0)


def _s3_entries(fs: fsspec.AbstractFileSystem, folder: str) -> Iterator[tuple[str, int | None]]:
    """The same of a bucket, page by page; pages follow each other in the order of the keys."""
    bucket, _, prefix = folder.partition("/")
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": S3_PAGE}
    while True:
        page = retrying(lambda: fs.call_s3("list_objects_v2", **request), f"listing s3://{folder}")
        found: dict[str, int | None] = {
            entry["Key"]: entry["Size"] for entry in page.get("Contents", ())
        }
        found |= {entry["Prefix"]: None for entry in page.get("CommonPrefixes", ())}
        for key in sorted(found):
            yield key[len(prefix) :].removesuffix("/"), found[key]
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]

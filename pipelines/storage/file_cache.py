"""Files of an object store on this node's own disk: whole, verified, bounded, shared.

    ROOT/lock                 held while room is made
    ROOT/GROUP/lock           held, shared, by every process that reads the group (a dataset)
    ROOT/GROUP/SHA256         a whole file, whose bytes have this sha256
    ROOT/GROUP/.SHA256.part   one that the process with its lock is fetching

The locks are the kernel's (flock) and end with their process: whoever dies blocks nobody, and what
it left is removed. A reader waits for no file. It reads what it needs from the store, and a thread
fetches the whole file for the next time: a window of the training stream needs one row group of
each of many files, so waiting for whole files would keep the first batch back.

Least recently used files make room, but none of a group that a process reads: a stream reads every
file once an epoch in random order, and would lose each of them just before it is needed again. So
a part of a dataset that is larger than the limit stays, and the rest is read from the store.

fsspec's filecache and blockcache have no limit, check no sha256 and lock nothing between processes.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from pipelines.storage.objects import local_path
from pipelines.storage.ranges import open_range

ROOT = "context-encoder-cache"  # inside the folder that a user names: all in it may be removed
FREE_SHARE = 0.1  # of the disk stays free; Ray writes nothing to a disk that is 95 % full
PIECE_BYTES = 8 << 20
FETCHES = 3  # of a file that arrives with other bytes than its sha256 says
REST_S = 60.0  # without a try to fetch, after a fault or where there is no room


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where files are kept; the same on every node."""

    folder: str
    limit_bytes: int
    """Most bytes of all groups together."""
    group: str
    """Name of what is read, and kept, together."""


class Use(NamedTuple):
    """What was read."""

    hits: int = 0
    """Reads from this disk."""
    misses: int = 0
    """Reads from the store."""
    cache_bytes: int = 0
    store_bytes: int = 0
    """Of misses and of files that were fetched."""

    def plus(self, other: "Use") -> "Use":
        """The sum."""
        return Use(*(mine + its for mine, its in zip(self, other, strict=True)))


class Wanted(NamedTuple):
    """A file of the store."""

    uri: str
    bytes: int
    sha256: str


@cache
def opened(settings: CacheSettings) -> "FileCache":
    """The one of this process."""
    return FileCache(settings)


class FileCache:
    """The files of a group, for one process.

    What goes wrong with the disk is told once, as a warning in `take`, and costs only speed.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """Hold the group, so that nobody removes its files; remove what the dead left."""
        self._root = local_path(settings.folder) / ROOT
        self._folder = self._root / settings.group
        self._limit = settings.limit_bytes
        self._verified: set[str] = set()
        self._queue: SimpleQueue[Wanted | None] = SimpleQueue()
        self._queued: set[str] = set()
        self._refused: set[str] = set()
        self._rest_until = 0.0
        self._thread: threading.Thread | None = None
        self._counting = threading.Lock()
        self._use, self._warnings = Use(), dict[str, None]()
        self._told: set[str] = set()
        self._hold: int | None = None
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._root.stat().st_uid != os.getuid():
                raise PermissionError(errno.EACCES, "another user made it: name another folder")
            self._hold = _open(self._folder / "lock")
            fcntl.flock(self._hold, fcntl.LOCK_SH)
            with self._alone():
                _remove_left_parts(self._root)
        except OSError as error:
            self._warn_of(error)
            self.close()

    def find(self, wanted: Wanted) -> Path | None:
        """A verified file on this disk; None where it has to be read from the store for now."""
        if self._hold is None or wanted.sha256 in self._refused:
            return None
        path = self._folder / wanted.sha256
        if wanted.sha256 in self._verified or self._verify(path, wanted):
            return path
        if wanted.sha256 not in self._queued and time.monotonic() >= self._rest_until:
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_all, name="cache", daemon=True)
                self._thread.start()
            self._queued.add(wanted.sha256)
            self._queue.put(wanted)
        return None

    def discard(self, wanted: Wanted) -> None:
        """Forget a file that was found and cannot be read."""
        self._verified.discard(wanted.sha256)
        path = self._folder / wanted.sha256
        if path.exists():
            with suppress(OSError):  # it is verified again
                path.unlink()
            self._warn_of_damage(wanted)

    def fetch(self, wanted: Wanted) -> bool:
        """Bring a file; False where another process does, or where there is no room.

        Raises:
            OSError: the disk, or the storage for longer than we try.
        """
        path, part = self._folder / wanted.sha256, self._folder / f".{wanted.sha256}.part"
        file = _open(part)
        try:
            if not _lock_now(file, part):
                return False
            try:
                if path.exists():
                    return True
                with self._alone():
                    if not self._make_room(wanted.bytes):
                        return False
                    _reserve(file, wanted.bytes)
                return self._fill(file, part, path, wanted)
            finally:
                part.unlink(missing_ok=True)
        finally:
            os.close(file)

    def count_hit(self, num_bytes: int) -> None:
        """A read from this disk."""
        self._count(Use(hits=1, cache_bytes=num_bytes))

    def count_miss(self) -> None:
        """A read from the store."""
        self._count(Use(misses=1))

    def count_stored(self, num_bytes: int) -> None:
        """Bytes that came from the store."""
        self._count(Use(store_bytes=num_bytes))

    def take(self) -> tuple[Use, tuple[str, ...]]:
        """What was read since the last call, and warnings, each of them once."""
        with self._counting:
            found = self._use, tuple(self._warnings)
            self._use, self._warnings = Use(), {}
        return found

    def close(self) -> None:
        """Fetch nothing more; others may remove the files."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def _fetch_all(self) -> None:
        while (wanted := self._queue.get()) is not None:
            try:
                if time.monotonic() >= self._rest_until:
                    self.fetch(wanted)
            except Exception as error:  # of the disk, or of any storage: the reader meets it, too
                self._rest_until = time.monotonic() + REST_S
                self._warn_of(error)
            finally:
                self._queued.discard(wanted.sha256)

    def _fill(self, file: int, part: Path, path: Path, wanted: Wanted) -> bool:
        for _ in range(FETCHES):
            if self._copy(file, wanted) == wanted.sha256:
                os.fsync(file)
                os.replace(part, path)
                self._verified.add(wanted.sha256)
                return True
        self._warn(
            f"{wanted.uri} came {FETCHES} times with other bytes than its manifest says, so it is "
            "not kept: check the dataset with jobs/inspect_dataset.py --verify"
        )
        self._refused.add(wanted.sha256)
        return False

    def _copy(self, file: int, wanted: Wanted) -> str:
        """Write the bytes of an object; returns their sha256."""
        digest = hashlib.sha256()
        os.lseek(file, 0, os.SEEK_SET)
        source = open_range(wanted.uri, 0, wanted.bytes, PIECE_BYTES, self.count_stored)
        with source, open(file, "wb", closefd=False) as target:
            while piece := source.read(PIECE_BYTES):
                digest.update(piece)
                target.write(piece)
        return digest.hexdigest()

    def _verify(self, path: Path, wanted: Wanted) -> bool:
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256:
                    os.utime(path)  # used last now
                    self._verified.add(wanted.sha256)
                    return True
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:  # it cannot be read, or not be removed
            self._refused.add(wanted.sha256)
            self._warn_of(error)
            return False
        self._warn_of_damage(wanted)
        return False

    def _make_room(self, needed: int) -> bool:
        """Remove the least recently used files of groups that nobody reads, if that is enough."""
        _remove_left_parts(self._root)
        files = [_File.of(path) for path in self._root.glob("*/*") if path.name != "lock"]
        disk = shutil.disk_usage(self._root)
        beyond_limit = sum(file.bytes for file in files) + needed - self._limit
        beyond_disk = int(needed + FREE_SHARE * disk.total) - disk.free
        excess = max(beyond_limit, beyond_disk)
        with _idle(self._root) as groups:
            idle = sorted(file for file in files if file.path.parent in groups)
            if sum(file.bytes for file in idle) < excess:
                self._rest_until = time.monotonic() + REST_S
                if beyond_disk > 0:
                    self._warn(
                        f"{FREE_SHARE:.0%} of the disk of the cache in {self._root} stay free, so "
                        "nothing more is kept there; the rest is read from the store"
                    )
                return False
            for file in idle:
                if excess <= 0:
                    break
                file.path.unlink(missing_ok=True)
                excess -= file.bytes
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of the node at a time."""
        file = _open(self._root / "lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _count(self, use: Use) -> None:
        with self._counting:
            self._use = self._use.plus(use)

    def _warn_of_damage(self, wanted: Wanted) -> None:
        self._warn(f"{wanted.uri} was damaged in the cache {self._root}; it is fetched again")

    def _warn_of(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        self._warn(
            f"the cache in {self._root} cannot be filled ({reason}); what it lacks is read from "
            "the store"
        )

    def _warn(self, text: str) -> None:
        told = f"warning: {socket.gethostname()}: {text}"
        with self._counting:
            if told not in self._told:
                self._told.add(told)
                self._warnings[told] = None


class _File(NamedTuple):
    """Sorts by when it was used last."""

    used: float
    bytes: int
    path: Path

    @classmethod
    def of(cls, path: Path) -> "_File":
        try:
            found = path.stat()
        except FileNotFoundError:  # a part that has become a file, or a damaged one
            return cls(0.0, 0, path)
        return cls(found.st_mtime, found.st_size, path)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _reserve(file: int, num_bytes: int) -> None:
    """Take the room now, so that others count it and a full disk is met before the download."""
    if num_bytes and hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(file, 0, num_bytes)
    os.ftruncate(file, num_bytes)


def _lock_now(file: int, path: Path) -> bool:
    """Lock a file if nobody holds it, and it still has its name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove_left_parts(root: Path) -> None:
    """Of processes that died; those of the living are locked."""
    for part in root.glob("*/.*.part"):
        with suppress(FileNotFoundError):
            file = os.open(part, os.O_RDWR)
            try:
                if _lock_now(file, part):
                    part.unlink()
            finally:
                os.close(file)


@contextmanager
def _idle(root: Path) -> Iterator[set[Path]]:
    """The folders of groups that nobody reads; whoever begins to waits for the end of the block."""
    held = []
    try:
        groups = set()
        for lock in root.glob("*/lock"):
            held.append(file := _open(lock))
            if _lock_now(file, lock):
                groups.add(lock.parent)
        yield groups
    finally:
        for file in held:
            os.close(file)

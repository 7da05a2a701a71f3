"""How often the storage is asked, and for how long, before a lasting fault is one error.

$ python -m benchmarks.faults

Against an S3 server on loopback (moto), with the waits and timeouts of a real run; all faults at
once, in threads. Takes as long as the longest of them, about seven minutes. The full disk is one
that says so: no disk is filled.
"""

import errno
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.s3_server import Fault, FaultyServer, serving
from pipelines import storage
from pipelines.storage import CacheSettings, FileCache, Wanted, sha256_of_bytes

BUCKET = "faults"
LASTING = 10_000
CONTENT = bytes(range(250)) * 40
MULTIPART = bytes(101 << 20)  # s3fs uploads this in parts


def main() -> None:
    """Measure and print a table."""
    with serving() as server, tempfile.TemporaryDirectory() as folder:
        server.silent_s = 300.0  # longer than the client waits for an answer
        storage.filesystem("s3://x")[0].mkdir(BUCKET)
        cases = cases_of(server, Path(folder))
        with ThreadPoolExecutor(len(cases)) as pool:
            rows = list(pool.map(lambda case: measured(*case), cases))
        # Patched for the whole process, so not beside the others.
        rows += [measured("full disk", what, None, act) for what, act in full_disk(Path(folder))]
    print("| fault | of | tries | seconds | ends as |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def cases_of(
    server: FaultyServer, folder: Path
) -> list[tuple[str, str, Fault | None, Callable[[], Any]]]:
    """Name, what is done, the fault, and how to do it."""
    cases: list[tuple[str, str, Fault | None, Callable[[], Any]]] = []

    def add(name: str, what: str, kind: str, method: str, times: int = LASTING) -> None:
        key = f"{len(cases):02}-key"
        uri = f"s3://{BUCKET}/{key}"
        fault = Fault(kind, method, times, f"/{key}")
        acts: dict[str, Callable[[], Any]] = {
            "reading": lambda: storage.read_range(uri, 0, len(CONTENT)),
            "reading a part": lambda: storage.read_range(uri, 5, 500),
            "writing": lambda: storage.publish(uri, CONTENT),
            "upload in parts": lambda: upload(uri),
            "fetching into the cache": lambda: fetch(uri, folder / key),
        }
        storage.publish(uri, CONTENT)
        if what == "upload in parts":
            fault.part += "?uploadId"
        server.faults.append(fault)
        cases.append((name, what, fault, acts[what]))

    for method, what in (("GET", "reading"), ("PUT", "writing")):
        add("503 SlowDown", what, "503", method)
        add("500", what, "500", method)
        add("connection reset", what, "reset", method)
        add("answers after 1 s", what, "slow", method)
        add("never answers", what, "silent", method)
        add("no permission (403)", what, "403", method)
    add("error inside a 200", "reading", "error in 200", "GET")
    add("error inside a 200", "upload in parts", "error in 200", "POST")
    add("short answer", "reading", "cut", "GET")
    add("flipped byte, twice", "reading", "flip", "GET", 2)
    add("flipped byte", "reading", "flip", "GET")
    add("flipped byte", "reading a part", "flip", "GET")
    add("object altered in the bucket", "fetching into the cache", "flip", "none")
    cases.append(("no bucket", "reading", None, lambda: storage.read_bytes("s3://absent/a")))
    cases.append(("no bucket", "writing", None, lambda: storage.publish("s3://absent/a", b"x")))
    return cases


def full_disk(folder: Path) -> list[tuple[str, Callable[[], Any]]]:
    """What is done, and how."""
    return [
        ("writing to a folder", lambda: write_full(folder)),
        ("fetching into the cache", lambda: fetch_full(folder / "cache")),
    ]


def measured(name: str, what: str, fault: Fault | None, act: Callable[[], Any]) -> tuple[str, ...]:
    """A row of the table."""
    began = time.perf_counter()
    try:
        ended = act()
        ended = ended if isinstance(ended, str) else "it works"
        if fault is not None and what.startswith("reading") and fault.times == LASTING:
            ended = "it works" if fault.kind == "slow" else "other bytes, not noticed here"
    except Exception as error:
        text = " ".join(str(error).split()).replace("|", "/")
        ended = f"{type(error).__name__}: {text[:120]}"
    seconds = time.perf_counter() - began
    tries = str(fault.hits) if fault is not None and fault.hits else "1"
    if fault is not None and 0 < fault.hits == fault.times:
        tries = str(fault.hits + 1)
    return name, what, tries, f"{seconds:.1f}", ended


def upload(uri: str) -> None:
    """Write an object that is uploaded in parts."""
    with storage.staged_file(uri) as staged:
        staged.write_bytes(MULTIPART)


def fetch(uri: str, folder: Path) -> str:
    """Into a cache, with the sha256 of other bytes."""
    cache = FileCache(CacheSettings(folder=str(folder), limit_bytes=10**9, group="a"))
    cache.fetch(Wanted(uri, len(CONTENT), sha256_of_bytes(b"other bytes")))
    (warning,) = cache.take()[1]
    cache.close()
    return "one warning, nothing kept: " + warning.partition(": ")[2].partition(": ")[2][:90]


def write_full(folder: Path) -> None:
    """Publish where no byte fits."""
    with storage.naming_full(str(folder)), mock.patch.object(Path, "write_bytes", refuse):
        storage.publish(str(folder / "full"), b"x")


def fetch_full(folder: Path) -> str:
    """Look for a file in a cache where no byte fits."""
    storage.publish(uri := f"s3://{BUCKET}/full", CONTENT)
    cache = FileCache(CacheSettings(folder=str(folder), limit_bytes=10**9, group="a"))
    with mock.patch.object(os, "posix_fallocate", refuse):
        cache.find(Wanted(uri, len(CONTENT), sha256_of_bytes(CONTENT)))
        cache.close()
    (warning,) = cache.take()[1]
    return "one warning, training reads the store: " + warning[-90:]


def refuse(*args: object) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    main()

"""The cache of shards on a node's disk: whole files or none, bounded, and never in the way."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_helpers import place

from benchmarks.s3_server import Fault, FaultyServer
from pipelines import storage
from pipelines.storage import CacheSettings, FileCache, Wanted, file_cache, sha256_of_bytes

pytestmark = pytest.mark.s3
SIZE = 1000


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., FileCache]]:
    """Caches of the same folder, as several processes have them."""
    made: list[FileCache] = []

    def make(group: str = "a", limit: int = 10 * SIZE) -> FileCache:
        settings = CacheSettings(folder=str(tmp_path), limit_bytes=limit, group=group)
        made.append(FileCache(settings))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def put(name: str, content: bytes | None = None) -> Wanted:
    content = os.urandom(SIZE) if content is None else content
    storage.publish(place(name), content)
    return Wanted(place(name), len(content), sha256_of_bytes(content))


def gets(server: FaultyServer, name: str) -> int:
    return sum(request.startswith("GET") and name in request for request in server.requests)


def files(folder: Path) -> list[Path]:
    root = folder / file_cache.ROOT
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "lock")


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def warnings(cache: FileCache) -> str:
    return "\n".join(cache.take()[1])


def test_a_file_is_fetched_beside_the_reader_and_then_found(
    s3: FaultyServer, make: Callable[..., FileCache]
) -> None:
    cache, wanted = make(), put("f")
    assert cache.find(wanted) is None
    until(lambda: cache.find(wanted))
    found = cache.find(wanted)
    assert found is not None and sha256_of_bytes(found.read_bytes()) == wanted.sha256
    assert gets(s3, "/f") == 1
    assert cache.take() == (storage.Use(store_bytes=SIZE), ())
    other = make()
    assert other.find(wanted) == found
    assert gets(s3, "/f") == 1


def test_least_recently_used_files_make_room_and_the_limit_holds(
    s3: FaultyServer, make: Callable[..., FileCache], tmp_path: Path
) -> None:
    before = make("before")
    kept = [put(f"k{n}") for n in range(3)]
    for at, wanted in enumerate(kept):
        assert before.fetch(wanted)
        path = tmp_path / file_cache.ROOT / "before" / wanted.sha256
        os.utime(path, (at, at))
    before.close()
    again = make("before")  # uses the oldest once more
    assert again.find(kept[0])
    again.close()
    now = make("now", limit=3 * SIZE)
    assert now.fetch(put("new"))
    assert [w.sha256 for w in kept if (tmp_path / file_cache.ROOT / "before" / w.sha256).exists()] \
        == [kept[0].sha256, kept[2].sha256]  # fmt: skip
    assert sum(path.stat().st_size for path in files(tmp_path)) == 3 * SIZE


def test_what_a_process_reads_is_never_removed_and_the_rest_is_read_from_the_store(
    s3: FaultyServer, make: Callable[..., FileCache], tmp_path: Path
) -> None:
    reader = make("read")
    assert reader.fetch(put("r0")) and reader.fetch(put("r1"))
    held = files(tmp_path)
    for group in ("other", "read"):
        cache = make(group, limit=2 * SIZE)
        assert not cache.fetch(put("more"))
        assert cache.find(put("more2")) is None
    assert files(tmp_path) == held


def test_a_damaged_file_is_told_and_fetched_anew(
    s3: FaultyServer, make: Callable[..., FileCache], tmp_path: Path
) -> None:
    wanted = put("f")
    assert make().fetch(wanted)
    (path,) = files(tmp_path)
    for damage in (b"x" * SIZE, b"", path.read_bytes()[:-1]):
        path.write_bytes(damage)
        cache = make()
        assert cache.find(wanted) is None
        assert "was damaged in the cache" in warnings(cache)
        until(lambda: cache.find(wanted))  # noqa: B023
        assert sha256_of_bytes(path.read_bytes()) == wanted.sha256


@pytest.mark.parametrize("kind", ["cut", "flip", "503", "reset"])
def test_a_fault_on_the_way_never_reaches_a_file(
    s3: FaultyServer,
    make: Callable[..., FileCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(file_cache, "PIECE_BYTES", SIZE // 3)  # S3 has checksums of whole objects
    cache, wanted = make(), put("f")
    s3.faults = [Fault(kind, "GET", times=2, part="/f")]
    assert cache.fetch(wanted)
    assert s3.faults[0].hits == 2
    assert [sha256_of_bytes(path.read_bytes()) for path in files(tmp_path)] == [wanted.sha256]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("503", "GET", times=10_000, part="/f"), "still failing after 6 tries"),
        (None, "came 3 times with other bytes than its manifest says"),
    ],
)
def test_a_file_that_cannot_be_had_is_told_once_and_leaves_nothing(
    s3: FaultyServer,
    make: Callable[..., FileCache],
    tmp_path: Path,
    fault: Fault | None,
    told: str,
) -> None:
    cache, wanted = make(), put("f")._replace(sha256="0" * 64)
    s3.faults = [fault] if fault else []
    assert cache.find(wanted) is None
    found: list[str] = []
    until(lambda: found.extend(cache.take()[1]) or found)
    assert len(found) == 1 and told in found[0]
    asked = gets(s3, "/f")
    assert cache.find(wanted) is None  # and does not ask again at once
    time.sleep(0.2)
    assert gets(s3, "/f") == asked
    until(lambda: files(tmp_path) == [])


def test_a_full_disk_is_one_warning(
    s3: FaultyServer,
    make: Callable[..., FileCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(file: int, begin: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = make()
    found: list[str] = []
    for number in range(3):
        assert cache.find(put(f"f{number}")) is None
        until(lambda: found.extend(cache.take()[1]) or found)
    assert len(found) == 1
    assert "cannot be filled (No space left on device)" in found[0]
    assert files(tmp_path) == []


def test_a_tenth_of_the_disk_stays_free(
    s3: FaultyServer,
    make: Callable[..., FileCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = shutil.disk_usage(tmp_path)
    for free, fits in ((real.total // 10 + SIZE, True), (real.total // 10 + SIZE // 2, False)):
        usage = real._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        cache = make()
        assert cache.fetch(put(f"f{fits}")) == fits
        assert ("10% of the disk" in warnings(cache)) != fits


def test_a_folder_that_cannot_be_made_is_one_warning(
    s3: FaultyServer, make: Callable[..., FileCache], tmp_path: Path
) -> None:
    (tmp_path / file_cache.ROOT).write_bytes(b"a file")
    cache = make()
    assert cache.find(put("f")) is None
    assert cache.find(put("g")) is None
    assert warnings(cache).count("cannot be filled") == 1


def test_two_at_once_download_a_file_once(s3: FaultyServer, make: Callable[..., FileCache]) -> None:
    one, other, wanted = make(), make(), put("f")
    s3.faults = [Fault("slow", "GET", times=1, part="/f")]
    assert one.find(wanted) is None
    until(lambda: gets(s3, "/f"))
    began = time.monotonic()
    assert not other.fetch(wanted)
    assert time.monotonic() - began < 0.5  # nobody waits for the other
    until(lambda: one.find(wanted))
    assert other.find(wanted)
    assert gets(s3, "/f") == 1


FETCH = """
import sys
from pipelines.storage import CacheSettings, FileCache, Wanted
folder, group, uri, size, sha256 = sys.argv[1:]
cache = FileCache(CacheSettings(folder=folder, limit_bytes=10**6, group=group))
print(cache.fetch(Wanted(uri, int(size), sha256)))
"""


def fetch_elsewhere(folder: Path, wanted: Wanted) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, str(folder), "a", *map(str, wanted)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_download_blocks_nobody_and_leaves_nothing(
    s3: FaultyServer, make: Callable[..., FileCache], tmp_path: Path
) -> None:
    wanted = put("f")
    s3.faults = [Fault("silent", "GET", times=1, part="/f")]
    other = fetch_elsewhere(tmp_path, wanted)
    until(lambda: gets(s3, "/f"))
    (part,) = files(tmp_path)
    assert part.name.endswith(".part") and part.stat().st_size == SIZE
    assert not make().fetch(wanted)  # it lives
    other.send_signal(signal.SIGKILL)
    other.communicate()
    cache = make("another")
    assert files(tmp_path) == []  # removed by whoever comes next
    cache.close()
    assert make().fetch(wanted)
    assert [path.name for path in files(tmp_path)] == [wanted.sha256]


def test_several_processes_fill_one_folder(s3: FaultyServer, tmp_path: Path) -> None:
    wanted = put("f")
    processes = [fetch_elsewhere(tmp_path, wanted) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert "True" in answers
    assert [sha256_of_bytes(path.read_bytes()) for path in files(tmp_path)] == [wanted.sha256]
    assert gets(s3, "/f") == 1

"""The same promises on S3: a real HTTP server on loopback that fails in every way it can."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
from dataset_helpers import prepare_config, quarantine_of, rows_of
from helpers import jpeg, tar_of, write_images
from s3_helpers import BUCKET, place

from benchmarks.s3_server import Fault, FaultyServer
from pipelines import storage
from pipelines.data.manifest import is_dataset, read_manifest
from pipelines.errors import UserError
from pipelines.prepare.run import prepare_dataset
from pipelines.prepare.sources import listing
from pipelines.prepare.sources.readers import members
from pipelines.prepare.verify import verify
from pipelines.storage import lease, objects
from pipelines.storage import listing as storage_listing
from pipelines.storage.lease import LeaseBusyError

pytestmark = pytest.mark.s3


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*.jpg"):
        storage.publish(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def without_keys(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with the server but without credentials."""
    env = {name: value for name, value in os.environ.items() if "ACCESS_KEY" not in name}
    env |= {"AWS_EC2_METADATA_DISABLED": "true", **more}
    command = [sys.executable, "-c", f"from pipelines import storage; {code}"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_without_credentials_the_message_says_where_they_are_read(s3: FaultyServer) -> None:
    ended = without_keys(f"storage.exists({place('photos')!r})")
    message = ended.stderr.splitlines()[-1]
    assert "UserError: looking for s3://pictures/t/photos: Unable to locate" in message
    assert "AWS_ACCESS_KEY_ID" in message and "FSSPEC_S3_ANON=true" in message


def test_a_public_bucket_is_read_without_credentials(s3: FaultyServer) -> None:
    storage.publish(place("photos"), b"content")
    fs, _ = storage.filesystem(place("photos"))
    fs.call_s3("put_object_acl", Bucket=BUCKET, Key="t/photos", ACL="public-read")
    ended = without_keys(f"print(storage.read_bytes({place('photos')!r}))", FSSPEC_S3_ANON="true")
    assert ended.stdout == "b'content'\n", ended.stderr


@pytest.mark.parametrize("kind", ["503", "500", "reset", "slow"])
@pytest.mark.parametrize("verb", ["GET", "PUT", "HEAD", "range", "list", "upload"])
def test_a_passing_fault_of_any_verb_is_outlasted(
    s3: FaultyServer, tmp_path: Path, kind: str, verb: str
) -> None:
    storage.publish(place("a/b"), b"content")
    (tmp_path / "large").write_bytes(os.urandom(1 << 20))
    work: dict[str, tuple[str, Callable[[], Any], Any]] = {
        "GET": ("GET", lambda: storage.read_bytes(place("a/b")), b"content"),
        "range": ("GET", lambda: storage.read_range(place("a/b"), 2, 5), b"nte"),
        "HEAD": ("HEAD", lambda: storage.size(place("a/b")), 7),
        "list": ("GET", lambda: storage.children(place("a")), ["b"]),
        "PUT": ("PUT", lambda: storage.publish(place("c"), b"new"), None),
        "upload": ("PUT", lambda: put_file(tmp_path / "large", place("d")), None),
    }
    method, act, expected = work[verb]
    fault = Fault(kind, method, times=3 if kind != "slow" else 1)
    s3.faults = [fault]
    assert act() == expected
    assert fault.hits == fault.times
    if verb == "PUT":
        assert storage.read_bytes(place("c")) == b"new"
    if verb == "upload":
        assert storage.read_bytes(place("d")) == (tmp_path / "large").read_bytes()


def test_a_listing_of_many_pages_names_everything_once(
    s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_listing, "S3_PAGE", 3)
    names = [f"flat {number}.jpg" for number in range(10)]
    names += ["a.jpg", "a/1.jpg", "a/b/2.jpg", "a//3.jpg", "ä/4.jpg", "z/5.jpg"]
    for name in names:
        storage.publish(place(name), name.encode())
    fs, root = storage.filesystem(place(""))
    fs.touch(f"{root.rstrip('/')}/a/")  # the marker that consoles leave for a folder
    s3.requests = []
    s3.faults = [Fault("503", "GET", times=2), Fault("reset", "GET", times=2)]
    found = list(storage.walk(place("")))
    assert sorted(found) == sorted((name, len(name.encode())) for name in names)
    assert len(s3.requests) > len(names) / 3
    assert storage.children(place("")) == sorted({name.partition("/")[0] for name in names})
    assert storage.children(place("nothing")) == []
    with pytest.raises(UserError, match="there is no bucket 'no-such-bucket'"):
        storage.children("s3://no-such-bucket/x")


def test_a_prefix_of_any_size_is_listed_without_holding_it(
    s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold(*args: object, **kwargs: object) -> None:
        raise AssertionError("s3fs holds every object that it lists")

    for name in ("flat/1.jpg", "flat/train.jpg", "split/Train/cat/1.jpg", "split/val/2.jpg"):
        storage.publish(place(name), b"x")
    storage.publish(f"s3://{BUCKET}/3.jpg", b"x")
    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_lsdir", hold)
        assert splits_of(place("flat")) == {"1.jpg": None, "train.jpg": None}
        assert splits_of(place("split")) == {"Train/cat/1.jpg": "train", "val/2.jpg": "val"}
        assert "3.jpg" in dict(storage.walk(f"s3://{BUCKET}"))
        assert not storage.is_folder(place("flat/1.jpg"))
        assert not storage.is_folder(place("fla"))
        assert not storage.is_folder("s3://no-such-bucket")


def test_two_colons_in_a_key_are_a_part_of_it(s3: FaultyServer) -> None:
    keys = ["cat/1.jpg", "cat/a::b.jpg", "dog/2.jpg", "dog/s3::x/3.jpg"]
    for number, key in enumerate(keys):
        storage.publish(place(f"colons/{key}"), jpeg(number))
    found = [m for piece in listing.pieces(place("colons"), Counter()) for m in members(piece)]
    assert {m.key: m.data for m in found} == {key: jpeg(n) for n, key in enumerate(keys)}


def splits_of(source: str) -> dict[str, str | None]:
    return {piece.key: piece.split for piece in listing.pieces(source, Counter())}


def put_file(path: Path, uri: str) -> None:
    with storage.staged_file(uri) as staged:
        staged.write_bytes(path.read_bytes())


@pytest.mark.parametrize("kind", ["503", "reset"])
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_a_lasting_fault_ends_in_one_error_in_bounded_time(
    s3: FaultyServer, kind: str, method: str
) -> None:
    storage.publish(place("a"), b"content")
    s3.faults = [Fault(kind, method, times=10_000)]
    act = {
        "GET": lambda: storage.read_bytes(place("a")),
        "PUT": lambda: storage.publish(place("b"), b"x"),
        "HEAD": lambda: storage.size(place("a")),
    }[method]
    began = time.monotonic()
    with pytest.raises(OSError, match="still failing after 6 tries"):
        act()
    assert time.monotonic() - began < 60


def test_a_server_that_never_answers_is_given_up(
    s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(place("a"), b"content")
    quick = {
        "config_kwargs": {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 0}}
    }
    monkeypatch.setattr(objects, "S3_OPTIONS", quick)
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    s3.faults = [Fault("silent", "GET", times=100)]
    began = time.monotonic()
    with pytest.raises(OSError, match="still failing after 2 tries"):
        storage.read_bytes(place("a"))
    assert time.monotonic() - began < 30


def test_wrong_credentials_and_missing_objects_are_not_tried_again(s3: FaultyServer) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(place("nothing"))
    assert len(s3.requests) <= 3


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_the_credentials_do_not_allow_is_named_at_once(s3: FaultyServer, method: str) -> None:
    storage.publish(place("a"), b"content")
    s3.faults = [Fault("403", method, times=10_000)]
    act = {
        "GET": lambda: storage.read_bytes(place("a")),
        "PUT": lambda: storage.publish(place("a"), b"x"),
    }[method]
    with pytest.raises(PermissionError, match=r"ing s3://pictures/t/a: AccessDenied: the cred"):
        act()
    assert s3.faults[0].hits == 1


def test_an_upload_in_parts_outlasts_an_error_inside_a_200(
    s3: FaultyServer, tmp_path: Path
) -> None:
    content = bytes(101 << 20)  # less is one request
    (tmp_path / "large").write_bytes(content)
    s3.faults = [Fault("error in 200", "POST", times=2, part="large?uploadId")]
    put_file(tmp_path / "large", place("large"))
    assert s3.faults[0].hits == 2
    assert storage.size(place("large")) == len(content)


def test_a_missing_bucket_is_named(s3: FaultyServer) -> None:
    for act in (lambda uri: storage.publish(uri, b"x"), storage.read_bytes):
        with pytest.raises(UserError, match="no bucket 'absent'; create it or correct the name"):
            act("s3://absent/t/a")


@pytest.mark.parametrize("kind", ["cut"])
def test_a_short_answer_is_asked_for_again(s3: FaultyServer, kind: str) -> None:
    storage.publish(place("a"), bytes(range(200)))
    s3.faults = [Fault(kind, "GET", times=2)]
    assert storage.read_range(place("a"), 0, 200) == bytes(range(200))


def test_a_lease_is_held_although_the_answer_to_its_claim_was_lost(s3: FaultyServer) -> None:
    uri = place("lease")
    s3.faults = [Fault("lost", "PUT", times=1)]
    claim = lease.acquire(uri, "holder", lease_s=10, now=100)
    assert s3.requests.count(f"PUT /{BUCKET}/t/lease/000001.json") == 2
    lease.renew(claim, lease_s=10, now=105)
    with pytest.raises(LeaseBusyError, match="holder"):
        lease.acquire(uri, "other", lease_s=10, now=110)


def test_exactly_one_of_many_creates_an_object(s3: FaultyServer) -> None:
    for race in range(10):
        uri = place(f"race{race}")
        barrier = threading.Barrier(4)
        won: list[bytes] = []

        def compete(name: bytes, uri: str = uri, barrier: Any = barrier, won: Any = won) -> None:
            barrier.wait()
            try:
                storage.publish(uri, name, exclusive=True)
            except FileExistsError:
                return
            won.append(name)

        threads = [threading.Thread(target=compete, args=(b"%d" % n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [storage.read_bytes(uri)] == won


def test_a_dataset_on_s3_has_the_bytes_of_one_on_disk_through_a_storm_of_faults(
    s3: FaultyServer,
    serially: None,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "p", {"apple": 12, "pear": 12})
    upload(tmp_path / "p", place("p"))
    local = read_manifest(prepare_dataset(prepare_config(tmp_path / "p", tmp_path / "d")))
    s3.faults = [
        Fault(kind, method, times=2, part=part)
        for kind in ("503", "reset")
        for method, part in (
            ("GET", "apple"), ("PUT", ".spill"), ("GET", ".spill"), ("PUT", ".parquet"),
            ("PUT", "manifest"), ("GET", ".json"), ("HEAD", ""),
        )
    ]  # fmt: skip
    remote = read_manifest(prepare_dataset(prepare_config(place("p"), place("d"))))
    assert sum(fault.hits for fault in s3.faults) >= 20
    assert remote.fingerprint == local.fingerprint
    s3.faults = []
    verify(place("d"), remote)
    assert rows_of(place("d"), "image", "label") == rows_of(tmp_path / "d", "image", "label")
    assert storage.children(place("d/_work")) == []
    assert "train" in storage.children(place("d"))


def test_a_name_that_looks_like_a_pattern_removes_nothing_else(s3: FaultyServer) -> None:
    for name in ("ds[1]/_work/a", "ds[1]/_work/b/c", "ds1/_work/a", "ds[1]/kept"):
        storage.publish(place(name), b"x")
    storage.remove(place("ds[1]/_work"))
    storage.remove(place("ds[1]/nothing"))
    assert storage.children(place("ds[1]")) == ["kept"]
    assert storage.children(place("ds1/_work")) == ["a"]


def test_an_image_that_is_bad_only_on_its_way_is_not_set_aside(
    s3: FaultyServer,
    serially: None,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "p", {"apple": 10})
    upload(tmp_path / "p", place("p"))
    storage.publish(place("p/apple/bad.jpg"), b"<html>")
    s3.faults = [Fault("flip", "GET", times=1, part="0003.jpg")]
    manifest = read_manifest(prepare_dataset(prepare_config(place("p"), place("d"))))
    assert (manifest.written, manifest.quarantine) == (10, {"unidentified": 1})


def test_a_storage_that_stays_away_fails_the_job_and_files_nothing_as_bad(
    s3: FaultyServer,
    serially: None,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "p", {"apple": 10})
    upload(tmp_path / "p", place("p"))
    s3.faults = [Fault("503", "GET", times=10_000, part="0005.jpg")]
    with pytest.raises(UserError, match="still failing after 6 tries"):
        prepare_dataset(prepare_config(place("p"), tmp_path / "d"))
    assert not is_dataset(str(tmp_path / "d"))
    assert quarantine_of(tmp_path / "d") == {}
    s3.faults = []
    assert read_manifest(prepare_dataset(prepare_config(place("p"), tmp_path / "d"))).written == 10


@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_bytes_that_change_on_the_way_back_are_found_before_they_are_used(
    s3: FaultyServer,
    serially: None,
    tmp_path: Path,
    kind: str,
) -> None:
    write_images(tmp_path / "p", {"apple": 12})
    clean = read_manifest(prepare_dataset(prepare_config(tmp_path / "p", tmp_path / "clean")))
    fault = Fault(kind, "GET", times=3, part=".spill")
    s3.faults = [fault]
    manifest = read_manifest(prepare_dataset(prepare_config(tmp_path / "p", place("d"))))
    assert fault.hits == 3
    assert manifest.fingerprint == clean.fingerprint
    s3.faults = [Fault(kind, "GET", times=2, part=manifest.splits["train"][0].path)]
    verify(place("d"), manifest)
    s3.faults = [Fault(kind, "GET", times=10_000, part=manifest.splits["train"][0].path)]
    with pytest.raises((UserError, OSError)):
        verify(place("d"), manifest)


def test_an_archive_on_s3_is_read_as_a_stream(
    s3: FaultyServer,
    serially: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(storage.RangeReader, "PIECE_BYTES", 1 << 16)
    inner = {
        f"n{n}.tar": tar_of({f"n{n}_{i}.JPEG": jpeg(10 * n + i) for i in range(6)})
        for n in range(3)
    }
    storage.publish(place("p/train.tar"), tar_of(inner))
    s3.faults = [Fault("cut", "GET", times=2, part="train.tar")]
    manifest = read_manifest(prepare_dataset(prepare_config(place("p"), tmp_path / "d")))
    assert (manifest.written, manifest.classes) == (18, ("n0", "n1", "n2"))

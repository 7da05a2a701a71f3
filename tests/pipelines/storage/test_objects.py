"""Places that fsspec could take for something else."""

from pathlib import Path

import fsspec
import pytest

from pipelines import storage
from pipelines.storage.objects import filesystem


@pytest.mark.parametrize("key", ["cat/a::b.jpg", "a::b::c", "file::x", "::"])
def test_two_colons_in_a_key_are_a_part_of_it(key: str) -> None:
    assert filesystem(f"s3://bucket/p/{key}")[1] == f"bucket/p/{key}"


def test_two_colons_in_a_local_name_are_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a::b" / "c::d.jpg"
    path.parent.mkdir()
    path.write_bytes(b"bytes")
    assert filesystem(str(path)) == (filesystem(str(tmp_path))[0], str(path))
    assert storage.read_bytes(str(path)) == b"bytes"


def test_chained_filesystems_stay_chained(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"bytes")
    for uri in (f"simplecache::file://{tmp_path}/a.txt", f"filecache::{tmp_path}/a.txt"):
        fs, path = filesystem(uri) if "://" in uri else fsspec.core.url_to_fs(uri)
        assert "cache" in str(fs.protocol) and path.endswith("a.txt")

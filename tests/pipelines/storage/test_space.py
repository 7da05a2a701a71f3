"""A full store is told with its name, and its room before the work."""

import errno
import shutil
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.errors import UserError


def test_room_is_that_of_the_disk_where_a_place_will_lie(tmp_path: Path) -> None:
    found = storage.free_bytes(str(tmp_path / "not" / "there" / "yet"))
    assert found is not None and abs(found - shutil.disk_usage(tmp_path).free) < 1e9
    assert storage.free_bytes("s3://bucket/store") is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_store_is_named(code: int, tmp_path: Path) -> None:
    error = OSError(code, "no room", "/deep/../.state.tmp")
    found = storage.describe_full(error, str(tmp_path))
    assert found is not None and f"the store '{tmp_path}' is full (" in found
    assert "GB free): no room; make room in it" in found and "state.tmp" not in found
    with pytest.raises(UserError, match=r"is full .* rerun the same command"):
        with storage.naming_full(str(tmp_path)):
            raise error


def test_other_errors_are_not_about_room(tmp_path: Path) -> None:
    assert storage.describe_full(OSError(errno.EACCES, "no"), str(tmp_path)) is None
    assert storage.describe_full(ValueError("no"), str(tmp_path)) is None
    with pytest.raises(PermissionError), storage.naming_full(str(tmp_path)):
        raise PermissionError(errno.EACCES, "no")

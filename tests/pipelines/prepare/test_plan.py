"""The plan of a preparation: what the tasks read, without what nobody else may."""

import json
from pathlib import Path

import pytest
from dataset_helpers import empty_manifest

from pipelines.data import manifest
from pipelines.errors import UserError
from pipelines.prepare import plan
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.sources.piece import Piece

LOGIN = "http://alice:s3cr3t@host/a.tar"
SIGNED = "https://bucket.host/b.tar?X-Amz-Signature=abcdef&part=1"
PLAIN = "s3://bucket/c.tar"


def test_stored_units_hold_no_secret_and_the_tasks_get_whole_addresses(tmp_path: Path) -> None:
    pieces = [
        Piece("tar", uri, str(number), 10) for number, uri in enumerate((LOGIN, SIGNED, PLAIN))
    ]
    with plan.listing(pieces) as found:
        assert list(found) == pieces
        made = plan.make(found, str(tmp_path))
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (b"alice", b"s3cr3t", b"abcdef"):
        assert secret not in stored
    units = range(made.num_units)
    read = [
        p
        for unit in units
        for p in plan.read_unit(str(tmp_path), unit, found.secrets, keep_splits=True)
    ]
    assert read == pieces
    # What an earlier version stored whole is read as it stands.
    assert plan.reveal(pieces[0], {}) == pieces[0]


def test_no_manifest_names_a_secret_not_even_one_of_an_earlier_version(tmp_path: Path) -> None:
    shown = PrepareConfig(source=(LOGIN, SIGNED)).shown_source
    assert shown == "http://host/a.tar https://bucket.host/b.tar?X-Amz-Signature=...&part=1"
    manifest.write_manifest(str(tmp_path), empty_manifest())
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "source": f"{LOGIN} {SIGNED}"}))
    assert manifest.read_manifest(str(tmp_path)).source == shown


def test_one_address_with_two_logins_is_refused() -> None:
    other = LOGIN.replace("alice", "bob")
    pieces = [Piece("tar", uri, uri[-5:], 10) for uri in (LOGIN, other)]
    with (
        pytest.raises(UserError, match=r"'http://host/a.tar' is listed with two logins"),
        plan.listing(pieces),
    ):
        pass

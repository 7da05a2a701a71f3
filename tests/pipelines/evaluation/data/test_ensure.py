"""What an evaluation is given may be anything that can be prepared."""

from pathlib import Path

import pytest
from helpers import class_folders, tar_of

from pipelines.data.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.evaluation.data.ensure import ensure_usable
from pipelines.evaluation.data.images import layout_of, read_images


def test_data_that_a_task_reads_stay_where_they_are(tmp_path: Path) -> None:
    data = str(class_folders(tmp_path / "data"))
    assert ensure_usable(data, str(tmp_path / "store")) == data
    assert not (tmp_path / "store").exists()


def test_an_archive_is_prepared_and_found_prepared(tmp_path: Path, serially: None) -> None:
    folder = class_folders(tmp_path / "data", per_class=8) / "train"
    images = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    (tmp_path / "photos.tar").write_bytes(tar_of(images))
    uri = ensure_usable(str(tmp_path / "photos.tar"), str(tmp_path / "store"))
    assert layout_of(uri) == "prepared"
    assert read_manifest(uri).classes == ("cat", "dog")
    assert len(read_images(uri, "val", 0)) >= 3  # about half of 16
    assert ensure_usable(str(tmp_path / "photos.tar"), str(tmp_path / "store")) == uri


def test_a_place_that_is_not_there_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert ensure_usable(nowhere, str(tmp_path)) == nowhere
    with pytest.raises(UserError, match="there is no such folder"):
        layout_of(nowhere)

"""The prepare job: nothing lost, nothing twice, the same bytes however the work is cut."""

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from dataset_helpers import (
    empty_manifest,
    files_of,
    prepare_config,
    prepared,
    quarantine_of,
    rows_of,
)
from helpers import draw_image, jpeg, tar_of, write_images

from ce_model import masks
from pipelines import storage
from pipelines.data import shards as data_shards
from pipelines.data.manifest import (
    MANIFEST,
    Manifest,
    ShardFile,
    default_masks,
    is_dataset,
    read_manifest,
    replace_manifest,
    write_manifest,
)
from pipelines.data.shards import RowGroup, read_row_group
from pipelines.errors import UserError
from pipelines.prepare import card, fault_budget, plan, shards, spill, tasks
from pipelines.prepare import ingest as gather_module
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset
from pipelines.prepare.verify import InspectConfig, inspect_dataset, verify
from pipelines.storage import objects


def flag_of(field: str) -> str:
    return "--" + field.replace("_", "-")


run_module = __import__("pipelines.prepare.run", fromlist=["run"])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_images(tmp_path / "pictures", {"apple": 30, "pear": 40})
    return tmp_path / "pictures"


def test_every_image_is_written_once_with_its_label_and_its_split(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d")
    rows = rows_of(tmp_path / "d", "label", "image", "sha256")
    assert set(rows) == {str(p.relative_to(pictures)) for p in pictures.rglob("*.jpg")}
    assert manifest.classes == ("apple", "pear")
    for key, (split, label, image, sha256) in rows.items():
        assert manifest.classes[label] == key.split("/")[0]
        assert sha256 == hashlib.sha256((pictures / key).read_bytes()).digest()
        height, width, _, _ = simplejpeg.decode_jpeg_header(image)
        assert min(height, width) == 96
        assert split in ("train", "val")
    assert manifest.listed == manifest.written == 70
    assert 4 <= manifest.rows("val") <= 26
    assert not (tmp_path / "d" / "_work").exists()


def test_the_masks_are_those_of_seed_strategy_side_key_and_variant(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d", seed=5)
    rows = rows_of(tmp_path / "d", *(spec.column for spec in manifest.masks))
    for key in list(rows)[:5]:
        for spec, cell in zip(manifest.masks, rows[key][1:], strict=True):
            for variant in range(spec.variants):
                expected = masks.mask_for(5, spec.strategy, spec.side, key, variant)
                assert np.array_equal(card.unpack(cell, spec, variant), expected)


def test_the_mean_colour_is_that_of_the_training_images(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d", jpeg_quality=100)
    train = [row[1] for row in rows_of(tmp_path / "d", "image").values() if row[0] == "train"]
    pixels = np.concatenate([simplejpeg.decode_jpeg(jpeg).reshape(-1, 3) for jpeg in train])
    assert manifest.train_pixels == len(pixels)
    assert np.abs(pixels.mean(axis=0) - manifest.mean_rgb).max() < 0.5


def test_how_the_work_is_cut_changes_no_byte(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(pictures, tmp_path / "a")
    monkeypatch.setattr(plan, "UNIT_PIECES", 3)
    monkeypatch.setattr(spill, "SPILL_BYTES", 1)
    prepared(pictures, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_an_image_keeps_its_split_and_its_place_when_others_come(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    prepared(pictures, tmp_path / "a")
    write_images(pictures, {"quince": 30}, first=500)
    prepared(pictures, tmp_path / "b")
    before, after = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert {key: after[key] for key in before} == before
    order = list(after)
    assert [key for key in order if key in before] == list(before)


def test_the_same_command_again_does_nothing(
    serially: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare_dataset(prepare_config(pictures, tmp_path / "d"))
    stamps = {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")}
    assert prepare_dataset(prepare_config(pictures, tmp_path / "d")) == first
    assert "already prepared" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")} == stamps


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("survived", [0, 1, 4, 9, 14, 20, 22, 23, 24, 25, 27])
def test_killed_between_any_two_writes_it_goes_on_and_ends_the_same(
    serially: None,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    survived: int,
) -> None:
    monkeypatch.setattr(plan, "UNIT_PIECES", 12)
    clean = prepared(pictures, tmp_path / "clean")
    writes = 0
    rename = objects._rename

    def dying(staged: Path, target: Path, exclusive: bool) -> None:
        nonlocal writes
        writes += 1
        if writes > survived:
            shutil.copy(staged, target.with_name(f".{target.name}.0.tmp"))  # as SIGKILL leaves it
            raise Killed
        rename(staged, target, exclusive)

    monkeypatch.setattr(objects, "_rename", dying)
    with pytest.raises(Killed):
        prepare_dataset(prepare_config(pictures, tmp_path / "d"))
    with pytest.raises(UserError, match="not a prepared dataset"):
        read_manifest(str(tmp_path / "d"))
    monkeypatch.setattr(objects, "_rename", rename)
    assert prepared(pictures, tmp_path / "d").fingerprint == clean.fingerprint
    assert files_of(tmp_path / "d") == files_of(tmp_path / "clean")


def killed_before(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *arguments: Any, **more: Any
) -> None:
    """Run a job that dies when it calls that function."""

    def dying(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dying)
        prepare_dataset(prepare_config(*arguments, **more))


def test_a_job_killed_after_its_commit_gets_its_card_from_the_next(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before(monkeypatch, card, "write", pictures, tmp_path / "d")
    assert is_dataset(str(tmp_path / "d"))
    assert (tmp_path / "d" / "_work").exists()
    manifest = prepared(pictures, tmp_path / "d")
    facts = json.loads((tmp_path / "d" / "card.json").read_text())
    assert facts["fingerprint"] == manifest.fingerprint
    assert not (tmp_path / "d" / "_work").exists()


def test_a_job_leaves_the_work_of_others_alone(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(pictures, tmp_path / "d")
    write_images(tmp_path / "more", {"plum": 20}, first=200)
    index_spills = fault_budget.index_spills

    def meanwhile(*arguments: Any) -> None:
        prepare_dataset(prepare_config(pictures, tmp_path / "d"))
        index_spills(*arguments)

    monkeypatch.setattr(fault_budget, "index_spills", meanwhile)
    assert prepared(tmp_path / "more", tmp_path / "d").written == 90
    assert not (tmp_path / "d" / "_work").exists()


def test_what_was_done_for_another_state_of_the_dataset_is_not_used(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(pictures, tmp_path / "d")
    write_images(tmp_path / "one", {"plum": 20}, first=200)
    write_images(tmp_path / "both", {"plum": 20, "fig": 10}, first=200)
    killed_before(monkeypatch, fault_budget, "index_spills", tmp_path / "both", tmp_path / "d")
    killed_before(monkeypatch, card, "write", tmp_path / "one", tmp_path / "d")
    assert prepared(tmp_path / "both", tmp_path / "d").written == 100
    assert len(rows_of(tmp_path / "d")) == 100


def test_a_source_that_moved_is_read_where_it_is(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before(monkeypatch, gather_module, "ingest_unit", pictures, tmp_path / "d")
    pictures.rename(tmp_path / "moved")
    assert prepared(tmp_path / "moved", tmp_path / "d").written == 70


def test_files_that_were_not_there_are_tried_again(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.jpg"))
    (pictures / "list.txt").write_text("".join(f"{name}\n" for name in names))
    (pictures / "apple").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"30 of 70 images are bad.*30 unreadable"):
        prepare_dataset(prepare_config(pictures / "list.txt", tmp_path / "d"))
    (tmp_path / "away").rename(pictures / "apple")
    assert prepared(pictures / "list.txt", tmp_path / "d").written == 70


@pytest.mark.parametrize("text", ["[]", "{}", "not JSON", '{"manifest_version": 3}'])
def test_a_manifest_of_another_program_makes_no_dataset(
    serially: None, pictures: Path, tmp_path: Path, text: str
) -> None:
    (pictures / "manifest.json").write_text(text)
    assert prepared(pictures, tmp_path / "d").written == 70
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"a manifest\.json lies that is no"):
        prepare_dataset(prepare_config(pictures, tmp_path / "taken"))


def test_finished_units_and_shards_are_not_done_again(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "UNIT_PIECES", 10)
    done: list[str] = []
    gather, write_shard = gather_module.ingest_unit, shards.write_shard

    def counted(row: dict[str, Any], **fixed: Any) -> dict[str, int]:
        if len(done) == 4:
            raise OSError("the network is away")
        done.append(f"unit {row['unit']}")
        return gather(row, **fixed)

    def counted_shard(row: dict[str, Any], **fixed: Any) -> dict[str, int]:
        done.append(f"shard {row['split']} {row['shard']}")
        return write_shard(row, **fixed)

    monkeypatch.setattr(gather_module, "ingest_unit", counted)
    monkeypatch.setattr(shards, "write_shard", counted_shard)
    with pytest.raises(UserError, match="the network is away"):
        prepare_dataset(prepare_config(pictures, tmp_path / "d"))
    done.append("again")
    prepared(pictures, tmp_path / "d")
    assert len(set(done)) == len(done)


def write_bad(folder: Path, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        (folder / f"bad{number}.jpg").write_bytes(b"<html>%d" % number)


def test_bad_images_are_set_aside_with_a_reason_and_every_one_is_counted(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    write_bad(pictures / "apple", 3)
    grey = draw_image(7, 120, 120)[..., 0]
    assert cv2.imwrite(str(pictures / "pear" / "grey.jpg"), grey)
    cut = (pictures / "pear" / "0030.jpg").read_bytes()[:-2]
    (pictures / "pear" / "cut.jpg").write_bytes(cut)
    shutil.copy(pictures / "pear" / "0031.jpg", pictures / "pear" / "again.jpg")
    manifest = prepared(pictures, tmp_path / "d")
    assert manifest.listed == 76 == manifest.written + 4 + 1
    assert (manifest.quarantined, manifest.duplicates) == (4, 1)
    assert manifest.quarantine == {"truncated": 1, "unidentified": 3}
    page = (tmp_path / "d" / "card.html").read_text()
    assert "<td>quarantined</td><td>unidentified</td><td>3</td>" in page
    assert manifest.converted == {"grey": 1}
    assert quarantine_of(tmp_path / "d") == {
        **{f"apple/bad{number}.jpg": "unidentified" for number in range(3)},
        "pear/cut.jpg": "truncated",
        "pear/again.jpg": "duplicate",
    }


def test_of_equal_images_one_stays_and_val_never_leaks_into_train(
    serially: None, tmp_path: Path
) -> None:
    source = tmp_path / "pictures"
    write_images(source / "train", {"a": 20, "b": 20})
    write_images(source / "val", {"a": 5}, first=100)
    shutil.copy(source / "val" / "a" / "0100.jpg", source / "train" / "b" / "leak.jpg")
    shutil.copy(source / "train" / "a" / "0000.jpg", source / "train" / "b" / "other.jpg")
    manifest = prepared(source, tmp_path / "d")
    rows = rows_of(tmp_path / "d")
    assert manifest.duplicates == 2
    assert rows["val/a/0100.jpg"] == ("val",)
    assert rows["train/a/0000.jpg"] == ("train",)
    assert not {"train/b/leak.jpg", "train/b/other.jpg"} & set(rows)


def test_a_folder_train_alone_makes_a_split_for_validation_in_an_archive_too(
    serially: None, tmp_path: Path
) -> None:
    write_images(tmp_path / "alone" / "train", {"a": 40, "b": 40})
    write_images(tmp_path / "both" / "train", {"a": 40, "b": 40})
    write_images(tmp_path / "both" / "val", {"a": 5}, first=100)
    for name in ("alone", "both"):
        splits = []
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            for file in sorted((tmp_path / name).rglob("*.jpg")):
                archive.add(file, file.relative_to(tmp_path / name))
        for source in (name, f"{name}.tar.gz"):
            manifest = prepared(tmp_path / source, tmp_path / f"of-{source}")
            assert manifest.written == manifest.listed
            splits.append(rows_of(tmp_path / f"of-{source}"))
        assert splits[0] == splits[1]
        held = [key for key, (split,) in splits[1].items() if split == "val"]
        if name == "both":
            assert sorted(held) == [f"val/a/{number:04}.jpg" for number in range(100, 105)]
        else:
            assert 5 < len(held) < 30


def test_of_two_members_with_one_name_the_second_is_set_aside(
    serially: None, tmp_path: Path
) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(30):
            info = tarfile.TarInfo(f"{number % 29}.jpg")
            info.size = len(jpeg(number))
            archive.addfile(info, io.BytesIO(jpeg(number)))
    manifest = prepared(tmp_path / "a.tar", tmp_path / "d")
    assert (manifest.listed, manifest.written, manifest.quarantined) == (30, 29, 1)
    assert quarantine_of(tmp_path / "d") == {"0.jpg": "duplicate_key"}


@pytest.mark.parametrize(("bad", "passes"), [(7, True), (8, False)])
def test_the_error_budget_holds_to_the_image(
    serially: None, pictures: Path, tmp_path: Path, bad: int, passes: bool
) -> None:
    write_bad(pictures, bad)
    limits = {"max_bad_images": 0, "max_bad_share": 7 / (70 + bad)}
    if passes:
        assert prepared(pictures, tmp_path / "d", **limits).quarantined == bad
        return
    with pytest.raises(UserError, match=r"8 of 78 images are bad.*8 unidentified"):
        prepare_dataset(prepare_config(pictures, tmp_path / "d", **limits))
    assert not is_dataset(str(tmp_path / "d"))
    assert set(quarantine_of(tmp_path / "d").values()) == {"unidentified"}


def test_one_bad_class_fails_the_job_within_a_good_whole(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    write_bad(pictures / "apple", 4)
    limits = {"max_bad_images": 3, "max_bad_share": 0.5, "max_bad_class_share": 0.1}
    with pytest.raises(UserError, match="4 of 34 in class apple"):
        prepare_dataset(prepare_config(pictures, tmp_path / "d", **limits))


def test_a_broken_archive_fails_the_job_unless_it_may(serially: None, tmp_path: Path) -> None:

    data = tar_of({f"{number}.jpg": jpeg(number) for number in range(30)})
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="1 archive broken"):
        prepare_dataset(prepare_config(tmp_path / "a.tar", tmp_path / "d"))
    manifest = prepared(tmp_path / "a.tar", tmp_path / "d", max_broken_archives=1)
    assert manifest.quarantine == {"broken_archive": 1}
    assert 5 < manifest.written < 30


@pytest.mark.parametrize(
    "output",
    ["{0}", "{0}/out", "{0}/deep/er", "file://{0}/out", "{0}/../beside/../pictures/out", "{1}/out"],
)
def test_an_output_in_its_own_source_is_refused_and_leaves_nothing(
    serially: None, pictures: Path, tmp_path: Path, output: str
) -> None:
    (tmp_path / "link").symlink_to(pictures)
    before = files_of(pictures)
    with pytest.raises(UserError, match="lies in the source"):
        prepare_dataset(prepare_config(pictures, output.format(pictures, tmp_path / "link")))
    assert files_of(pictures) == before


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("a/b/", "a/b/c"),
        ("/", "/c"),
        ("file:///", "file:///c"),
        ("memory://", "memory:///c"),
        ("s3://bucket//", "s3://bucket/c"),
        ("s3://", "s3:///c"),  # which names no bucket, and is refused: s3:/c would be a local path
    ],
)
def test_a_name_under_any_uri_stays_there(uri: str, joined: str) -> None:
    assert storage.join(uri, "c") == joined


def test_a_place_beside_a_folder_is_not_within_it() -> None:
    assert storage.is_within("memory://photos/x", "memory://photos/")
    assert not storage.is_within("memory://photos-out", "memory://photos")
    assert not storage.is_within("/photos/out", "memory://photos")
    assert not storage.is_within("/photos-out", "/photos")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (" ", "source is ' '; it must be a folder, file or URI"),
        ("nosuch://x/y", "'nosuch://' is no storage that can be used here: Protocol"),
        ("s3://", "names no bucket; it must be s3://BUCKET"),
        ("s3://me:secret@b/x", "was given with credentials; the address of a bucket has none"),
    ],
)
def test_a_source_that_is_no_place_is_one_message(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        prepare_dataset(PrepareConfig(source=source, output=str(tmp_path / "d")))


def test_an_archive_without_images_is_refused(serially: None, tmp_path: Path) -> None:

    (tmp_path / "a.tar").write_bytes(tar_of({"readme.txt": b"nothing to see"}))
    for dry_run in (False, True):
        with pytest.raises(UserError, match=r"a.tar'; there is no image in"):
            prepare_dataset(prepare_config(tmp_path / "a.tar", tmp_path / "d", dry_run=dry_run))


def test_nothing_new_adds_nothing_and_one_new_bad_image_is_set_aside(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    old = prepared(pictures, tmp_path / "d")
    again = prepared(pictures, tmp_path / "d", max_pixels=40_000_000)  # another job, all known
    assert (again.written, again.splits["train"]) == (70, old.splits["train"])
    write_bad(pictures / "apple", 1)
    new = prepared(pictures, tmp_path / "d")
    assert (new.listed, new.written, new.quarantined) == (71, 70, 1)
    assert new.splits["train"] == old.splits["train"]


def test_new_images_are_added_and_the_old_shards_stay(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    all_train = {"validation_share": 0.0}  # of images drawn later the split depends on those before
    old = prepared(pictures, tmp_path / "d", **all_train)
    before, rows = files_of(tmp_path / "d"), rows_of(tmp_path / "d")
    write_images(pictures, {"aaa": 20, "pear": 10}, first=300)
    write_bad(pictures / "pear", 1)
    shutil.copy(pictures / "apple" / "0000.jpg", pictures / "pear" / "twin.jpg")
    new = prepared(pictures, tmp_path / "d", **all_train)
    after = files_of(tmp_path / "d")
    assert {path: after[path] for path in before} == before
    assert new.classes == ("apple", "pear", "aaa")
    assert (new.listed, new.written, new.quarantined, new.duplicates) == (102, 100, 1, 1)
    everything = rows_of(tmp_path / "d", "label")
    assert {key: row[:1] for key, row in everything.items() if key in rows} == rows
    assert everything["aaa/0300.jpg"][1] == 2
    assert (old.revision, new.revision) == (0, 1)
    assert prepare_dataset(prepare_config(pictures, tmp_path / "d", **all_train))
    assert read_manifest(str(tmp_path / "d")) == new
    fresh = prepared(pictures, tmp_path / "fresh", **all_train)
    assert np.allclose(fresh.mean_rgb, new.mean_rgb, atol=1e-9)
    assert fresh.train_pixels == new.train_pixels
    verify(str(tmp_path / "d"), new)


def test_another_image_of_a_known_name_is_told_and_a_repaired_one_comes_in(
    serially: None, tmp_path: Path
) -> None:
    write_images(tmp_path / "one", {"apple": 20})
    whole = (tmp_path / "one" / "apple" / "0000.jpg").read_bytes()
    (tmp_path / "one" / "apple" / "0000.jpg").write_bytes(whole[:-300])
    old = prepared(tmp_path / "one", tmp_path / "d")
    assert (old.written, old.quarantine) == (19, {"truncated": 1})
    write_images(tmp_path / "two", {"apple": 21}, first=0)
    (tmp_path / "two" / "apple" / "0001.jpg").write_bytes(
        (tmp_path / "two" / "apple" / "0020.jpg").read_bytes()
    )
    new = prepared(tmp_path / "two", tmp_path / "d")
    assert (new.written, new.quarantine) == (21, {"truncated": 1, "duplicate_key": 1})
    assert quarantine_of(tmp_path / "d")["apple/0001.jpg"] == "duplicate_key"
    again = prepared(tmp_path / "two", tmp_path / "d", max_pixels=40_000_000)
    assert (again.written, again.quarantined) == (21, 2)


def test_bytes_that_changed_on_their_way_may_be_those_of_a_known_image(
    serially: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read_file = "memory://changed", gather_module.read_file
    for number in range(3):
        storage.publish(f"{source}/cat/{number}.jpg", jpeg(number))
    prepared(source, tmp_path / "d")
    storage.publish(f"{source}/cat/twin.jpg", jpeg(1))

    def changed(piece: Any) -> Any:
        member = read_file(piece)
        return member._replace(data=b"changed") if "twin" in member.key else member

    monkeypatch.setattr(gather_module, "read_file", changed)
    manifest = prepared(source, tmp_path / "d")
    assert (manifest.written, manifest.duplicates, manifest.quarantined) == (3, 1, 0)


def test_an_image_that_validation_does_not_keep_stays_in_train(
    serially: None, tmp_path: Path
) -> None:
    write_images(tmp_path / "p", {"train": 12})
    kept, lost = (tmp_path / "p" / "train" / f"000{n}.jpg" for n in (0, 1))
    (tmp_path / "p" / "val").mkdir()
    with tarfile.open(tmp_path / "p" / "val" / "twins.tar", "w") as tar:
        tar.add(kept, "a.jpg")
        tar.add(lost, "a.jpg")
    manifest = prepared(tmp_path / "p", tmp_path / "d")
    contents = {row[1] for row in rows_of(tmp_path / "d", "sha256").values()}
    assert {hashlib.sha256(path.read_bytes()).digest() for path in (kept, lost)} <= contents
    assert manifest.written == 12


def test_images_with_other_settings_are_not_mixed_in(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    prepare_dataset(prepare_config(pictures, tmp_path / "d"))
    with pytest.raises(UserError, match=r"--seed is 1; .* was made with 0"):
        prepare_dataset(prepare_config(pictures, tmp_path / "d", seed=1))
    with pytest.raises(UserError, match=r"masks asked for differ.*mask_central_64 x 1") as told:
        prepare_dataset(prepare_config(pictures, tmp_path / "d", sides=(32,)))
    assert str(told.value).endswith(f"--source {tmp_path}/d --sides 32")


def test_masks_are_added_without_reading_an_image_and_equal_those_cut_at_once(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(pictures, tmp_path / "whole", sides=(64, 96), variants=3)
    prepared(pictures, tmp_path / "d", sides=(64,), variants=2)
    before = files_of(tmp_path / "d")
    read = read_row_group

    def no_pictures(uri: str, group: RowGroup, columns: list[str]) -> Any:
        assert columns == ["key"]
        return read(uri, group, columns)

    facts = card.write(str(tmp_path / "whole"), whole)
    monkeypatch.setattr(card, "write", lambda uri, manifest: facts)
    monkeypatch.setattr(data_shards, "read_row_group", no_pictures)
    added = prepared(tmp_path / "d", tmp_path / "d", sides=(64, 96), variants=3)
    monkeypatch.setattr(data_shards, "read_row_group", read)
    after = files_of(tmp_path / "d")
    assert {path: after[path] for path in before} == before
    columns = [spec.column for spec in whole.masks]
    assert rows_of(tmp_path / "d", *columns) == rows_of(tmp_path / "whole", *columns)
    assert set(added.masks) == set(whole.masks)
    verify(str(tmp_path / "d"), added)


def test_the_columns_of_a_sidecar_keep_their_order(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    prepared(pictures, tmp_path / "d")
    first = prepared(tmp_path / "d", tmp_path / "d", sides=(32, 48))
    second = prepared(tmp_path / "d", tmp_path / "d", sides=(32,), variants=3)
    (before,), (kept, _) = (m.splits["train"][0].sidecars for m in (first, second))
    assert kept.columns == tuple(name for name in before.columns if name in kept.columns)
    assert len(kept.columns) == 4


def test_one_of_two_jobs_commits_and_the_other_says_so(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d")
    other = replace(manifest, jobs=("another",), seed=1)
    commit = run_module.commit
    assert commit(str(tmp_path / "d"), manifest, None) is False
    with pytest.raises(UserError, match="another job with other images or settings"):
        commit(str(tmp_path / "d"), other, None)
    assert read_manifest(str(tmp_path / "d")) == manifest


def test_of_fifty_races_to_commit_each_has_one_winner(tmp_path: Path) -> None:
    empty = Manifest(
        splits={}, classes=(), mean_rgb=(0, 0, 0), masks=(), stored_side=1, seed=0,
        listed=0, written=0, quarantined=0, duplicates=0,
    )  # fmt: skip
    for race in range(50):
        uri = str(tmp_path / str(race))
        barrier = threading.Barrier(4)
        won: list[str] = []

        def compete(name: str, uri: str = uri, barrier: Any = barrier, won: Any = won) -> None:
            barrier.wait()
            try:
                write_manifest(uri, replace(empty, jobs=(name,)))
            except FileExistsError:
                return
            won.append(name)

        threads = [threading.Thread(target=compete, args=(str(n),)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_manifest(uri).jobs == tuple(won)


def test_a_revision_has_one_author_and_a_killed_one_is_completed(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "d")
    old = prepared(pictures, uri)
    mine = replace(old, revision=1, jobs=(*old.jobs, "mine"))
    theirs = replace(old, revision=1, jobs=(*old.jobs, "theirs"))
    publish = storage.publish_json

    def dying(place: str, value: object, *, exclusive: bool = False) -> None:
        if place.endswith(MANIFEST):
            raise Killed
        publish(place, value, exclusive=exclusive)

    monkeypatch.setattr(storage, "publish_json", dying)
    with pytest.raises(Killed):
        replace_manifest(uri, mine)
    monkeypatch.setattr(storage, "publish_json", publish)
    assert read_manifest(uri) == old
    with pytest.raises(FileExistsError):
        replace_manifest(uri, theirs)
    assert read_manifest(uri) == mine


def test_the_fingerprint_is_of_what_a_training_can_see() -> None:
    manifest = empty_manifest()
    unseen: list[dict[str, Any]] = [
        {"source": "s3://elsewhere"}, {"jobs": ("a",)}, {"revision": 3},
        {"listed": 1, "duplicates": 1}, {"listed": 1, "quarantined": 1, "quarantine": {"cut": 1}},
    ]  # fmt: skip
    for change in unseen:
        assert replace(manifest, **change).fingerprint == manifest.fingerprint, change
    file = ShardFile(path="train/0", rows=1, bytes=9, sha256="a", row_groups=(1,))
    seen: list[dict[str, Any]] = [
        {"splits": {"train": (file,)}}, {"splits": {"train": (replace(file, sha256="b"),)}},
        {"splits": {"val": (file,)}}, {"classes": ("a",)}, {"mean_rgb": (1.0, 0.0, 0.0)},
        {"masks": default_masks((128,))}, {"stored_side": 128}, {"seed": 1},
    ]  # fmt: skip
    found = {replace(manifest, **change).fingerprint for change in [{}, *seen]}
    assert len(found) == 1 + len(seen)


def test_a_job_that_is_slow_to_put_its_revision_in_place_undoes_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "d")
    old = empty_manifest()
    write_manifest(uri, old)
    slow = replace(old, revision=1, jobs=(*old.jobs, "slow"))
    lost = replace(old, revision=1, jobs=(*old.jobs, "lost"))
    later = replace(slow, revision=2, jobs=(*slow.jobs, "later"))
    publish = storage.publish_json

    def pausing(place: str, value: object, *, exclusive: bool = False) -> None:
        if place.endswith(MANIFEST):
            monkeypatch.setattr(storage, "publish_json", publish)
            with pytest.raises(FileExistsError):
                replace_manifest(uri, lost)
            assert read_manifest(uri) == slow
            replace_manifest(uri, later)
        publish(place, value, exclusive=exclusive)

    monkeypatch.setattr(storage, "publish_json", pausing)
    replace_manifest(uri, slow)
    assert read_manifest(uri) == later


def test_a_zombie_that_writes_after_the_commit_changes_nothing_that_is_read(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d")
    before = rows_of(tmp_path / "d", "image")
    (tmp_path / "d" / "train" / "ffffffff-000000.parquet").write_bytes(b"late")
    storage.publish(str(tmp_path / "d" / "_work" / "x" / "units" / "000000.json"), b"{}")
    assert rows_of(tmp_path / "d", "image") == before
    verify(str(tmp_path / "d"), manifest)


def test_a_place_below_the_home_folder_is_one_for_readers_and_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    storage.publish("~/d/x", b"content")  # as a YAML file says it: no shell has expanded it
    assert storage.exists("~/d/x")
    assert storage.children("~/d") == ["x"]
    assert storage.read_bytes("~/d/x") == b"content"
    assert storage.read_range("~/d/x", 3, 7) == b"tent"
    assert storage.size("~/d/x") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    storage.publish("~no-such-user/x", b"content")  # a name like others
    assert storage.children("~no-such-user") == ["x"]
    assert (tmp_path / "~no-such-user" / "x").exists()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_publish_returns(
    exclusive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []

    def note(name: str, what: Any) -> None:
        call = getattr(os, name)

        def noted(*arguments: Any) -> None:
            order.append(what(*arguments))
            call(*arguments)

        monkeypatch.setattr(os, name, noted)

    note("fsync", lambda number: os.fstat(number).st_ino)
    for name in ("replace", "link"):
        note(name, lambda *_: "named")
    storage.publish(str(tmp_path / "x"), b"content", exclusive=exclusive)
    assert order == [(tmp_path / "x").stat().st_ino, "named", tmp_path.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_range_that_a_file_no_longer_has_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert storage.read_range(str(tmp_path / "x"), 1, 5) == b"2345"
    with pytest.raises(OSError, match="3 bytes instead of 6 from byte 2"):
        storage.read_range(str(tmp_path / "x"), 2, 8)


def test_a_storage_that_is_away_for_20_s_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = 0.0

    def sleep(seconds: float) -> None:
        nonlocal waited
        waited += seconds

    def read() -> bytes:
        if waited < 20:
            raise OSError("no route")
        return b"content"

    monkeypatch.setattr(objects, "time", SimpleNamespace(sleep=sleep))
    assert storage.retrying(read, "reading") == b"content"


def test_an_error_while_a_shard_is_open_leaves_no_shard(tmp_path: Path) -> None:
    target = tmp_path / "train" / "0.parquet"
    with pytest.raises(ZeroDivisionError), storage.staged_file(str(target)) as staged:
        staged.write_bytes(b"PAR1 half")
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == []


def test_the_closing_word_is_the_card_in_the_dataset(
    serially: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = prepared(pictures, tmp_path / "d")
    shown = capsys.readouterr().err
    assert "70 written + 0 quarantined + 0 duplicates" in " ".join(shown.split())
    assert f"fingerprint {manifest.fingerprint}\n" in shown  # whole, so that it can be copied
    facts = json.loads((tmp_path / "d" / "card.json").read_text())
    classes = facts["pictures_per_class"]
    assert sum(classes["train"].values()) == manifest.rows("train")
    assert set(facts["bytes_per_column"]) == {
        "key", "label", "image", "sha256", *(spec.column for spec in manifest.masks)
    }  # fmt: skip
    sheet = cv2.imread(str(tmp_path / "d" / "card.png"))
    assert sheet.shape == (card.CAPTION_PX + 8 * card.TILE_PX, 4 * card.TILE_PX, 3)
    page = (tmp_path / "d" / "card.html").read_text()
    assert manifest.fingerprint in page
    for name in manifest.classes:
        counts = "".join(f"<td>{classes[split].get(name, 0)}</td>" for split in manifest.splits)
        assert f"<td>{name}</td>{counts}" in page


def test_a_folder_may_have_any_name(
    serially: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a [b] [/c] :cat: #1 é?.d"
    shutil.copytree(pictures, odd / "in")
    assert prepared(odd / "in", odd / "out").written == 70
    assert f"dataset {odd}/out\n" in capsys.readouterr().err


def test_mlflow_gets_the_dataset_with_its_digest_and_the_card(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    from pipelines.tracking import runs
    from pipelines.tracking.client import client, tracking_uri

    store = tmp_path / "store"
    uri = prepare_dataset(
        replace(prepare_config(pictures, "unused"), output=None, store=str(store))
    )
    assert uri.startswith(str(store / "prepare"))
    manifest = read_manifest(uri)
    server = client(tracking_uri(None, str(store)))
    experiment = server.get_experiment_by_name("prepare")
    found = runs.find_run(server, experiment.experiment_id, manifest.jobs[0])
    assert found is not None
    assert found.info.status == "FINISHED" and found.data.tags["stage"] == "prepare"
    (logged,) = found.inputs.dataset_inputs
    assert manifest.fingerprint.startswith(logged.dataset.digest)
    names = {artifact.path for artifact in server.list_artifacts(found.info.run_id)}
    assert names == {"card.html", "card.json", "card.png"}


def test_a_tracking_server_that_is_away_does_not_fail_the_job(
    serially: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "TRACKING_WAIT_S", 1.0)
    manifest = prepared(pictures, tmp_path / "d", tracking_uri="http://127.0.0.1:9")
    assert manifest.written == 70


def test_a_dry_run_predicts_and_writes_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    prepare_dataset(prepare_config(pictures, tmp_path / "d", dry_run=True))
    shown = " ".join(capsys.readouterr().err.split())
    assert "70 in" in shown and "nothing was written" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_counts_no_image_that_the_label_list_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "p", {"": 6})
    (tmp_path / "l.csv").write_text("".join(f"000{n}.jpg,{'ab'[n % 2]}\n" for n in range(4)))
    (tmp_path / "a.tar").write_bytes(
        tar_of({path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()})
    )
    for source in ("p", "a.tar"):
        config = prepare_config(tmp_path / source, tmp_path / "d", validation_share=0.0)
        prepare_dataset(replace(config, labels=str(tmp_path / "l.csv"), dry_run=True))
        shown = " ".join(capsys.readouterr().err.split())
        assert "train │ 4 images" in shown and "without one" not in shown
        assert "bad among them │ 2 missing_label" in shown or source == "p"


def test_a_dry_run_predicts_what_the_job_makes_of_an_archive_of_small_images(
    serially: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(plan, "BUCKETS", (4, 4))
    (tmp_path / "a.tar").write_bytes(tar_of({f"{n}.jpg": jpeg(n) for n in range(300)}))
    requested = {"validation_share": 0.0, "rows_per_shard": 10}
    prepare_dataset(prepare_config(tmp_path / "a.tar", tmp_path / "d", dry_run=True, **requested))
    shown = " ".join(capsys.readouterr().err.split())
    pictures = int(re.search(r"images │ about ([\d,]+) in", shown)[1])  # type: ignore[index]
    assert 290 <= pictures <= 330  # 442 without the headers of the archive
    manifest = prepared(tmp_path / "a.tar", tmp_path / "d", **requested)
    assert len(manifest.splits["train"]) == 4
    assert "shards │ about 4 " in shown


def test_inspection_finds_a_flipped_bit_a_missing_file_and_a_wrong_label(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    manifest = prepared(pictures, tmp_path / "d")
    uri = str(tmp_path / "d")
    inspect_dataset(InspectConfig(dataset=uri, verify=True))
    first, second = manifest.splits["train"][:2]
    data = bytearray((tmp_path / "d" / first.path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "d" / first.path).write_bytes(bytes(data))
    (tmp_path / "d" / second.path).unlink()
    with pytest.raises(UserError, match=r"2 of its files(?s:.*)sha256(?s:.*)missing"):
        inspect_dataset(InspectConfig(dataset=uri, verify=True))
    with pytest.raises(UserError, match="missing or damaged"):
        inspect_dataset(InspectConfig(dataset=uri))
    val = replace(manifest, splits={"val": manifest.splits["val"]}, classes=("apple",))
    with pytest.raises(UserError, match=r"labels . to 1 for 1 classes"):
        verify(uri, val)


def test_verification_names_every_bad_file_of_a_shard_and_an_altered_manifest(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    prepared(pictures, tmp_path / "d")
    prepare_dataset(
        replace(prepare_config(tmp_path / "d", tmp_path / "d", sides=(96,)), output=None)
    )
    uri = str(tmp_path / "d")
    inspect_dataset(InspectConfig(dataset=uri, verify=True))
    file = read_manifest(uri).splits["train"][0]
    for path in (file.path, file.sidecars[0].path):
        (tmp_path / "d" / path).unlink()
    raw = storage.read_json(f"{uri}/manifest.json")
    storage.publish_json(f"{uri}/manifest.json", {**raw, "seed": 7})
    with pytest.raises(UserError, match=r"3 of its files(?s:.*)manifest\.json: its fingerprint"):
        inspect_dataset(InspectConfig(dataset=uri, verify=True))


def test_verification_is_of_the_revision_that_is_asked_for(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "d"
    prepared(pictures, uri)
    prepared(uri, uri, sides=(96,))
    for place, revision in ((uri / "revisions" / "000000.json", 0), (uri / MANIFEST, 1)):
        whole = place.read_bytes()
        storage.publish_json(str(place), {**json.loads(whole), "seed": 7})
        inspect_dataset(InspectConfig(dataset=str(uri), revision=1 - revision, verify=True))
        with pytest.raises(UserError, match=r"1 of its files(?s:.*)its fingerprint is"):
            inspect_dataset(InspectConfig(dataset=str(uri), revision=revision, verify=True))
        place.write_bytes(whole)


def test_what_a_kill_leaves_among_the_revisions_is_none(tmp_path: Path) -> None:
    uri, old = str(tmp_path / "d"), empty_manifest()
    write_manifest(uri, old)
    (tmp_path / "d" / "revisions").mkdir()
    (tmp_path / "d" / "revisions" / ".000000.json.0.tmp").write_bytes(b"{")
    replace_manifest(uri, replace(old, revision=1))
    assert read_manifest(uri, 0) == old
    with pytest.raises(UserError, match="has no revision 2; it has 0, 1"):
        read_manifest(uri, 2)


def test_a_dataset_whose_manifest_was_cut_is_not_taken_for_a_folder_of_parquet_files(
    serially: None, pictures: Path, tmp_path: Path
) -> None:
    prepared(pictures, tmp_path / "d")
    manifest = tmp_path / "d" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:500])
    with pytest.raises(UserError, match=r"manifest.json in .* is not as jobs/prepare\.py wrote it"):
        prepare_dataset(prepare_config(tmp_path / "d", tmp_path / "e"))
    with pytest.raises(UserError, match=r"manifest.json in .* is not as jobs/prepare\.py wrote it"):
        inspect_dataset(InspectConfig(dataset=str(tmp_path / "d")))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "requested", [{"seed": 9}, {"stored_side": 64}, {"labels": "labels.csv"}, {"label_base": 1}]
)
def test_masks_are_not_added_with_settings_that_would_be_ignored(
    serially: None, pictures: Path, tmp_path: Path, requested: dict[str, Any]
) -> None:
    before = prepared(pictures, tmp_path / "d", seed=5)
    for sides in ((64,), (96,)):  # held already, and lacking
        with pytest.raises(
            UserError, match=rf"{flag_of(next(iter(requested)))} is .*; adding masks"
        ):
            prepare_dataset(
                prepare_config(tmp_path / "d", tmp_path / "d", sides=sides, **requested)
            )
    assert read_manifest(str(tmp_path / "d")) == before
    prepare_dataset(prepare_config(tmp_path / "d", tmp_path / "d", sides=(96,)))


@pytest.mark.parametrize(
    "change", [{"listed": 1}, {"masks": 3}, {"other": 1}, {"splits": []}, {"mean_rgb": None}]
)
def test_a_manifest_that_is_not_as_it_was_written_is_told_so(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    empty = Manifest(
        splits={}, classes=(), mean_rgb=(0.0, 0.0, 0.0), masks=(), stored_side=64, seed=0,
        listed=0, written=0, quarantined=0, duplicates=0,
    )  # fmt: skip
    write_manifest(str(tmp_path), empty)
    assert read_manifest(str(tmp_path)) == empty
    raw = storage.read_json(str(tmp_path / "manifest.json"))
    storage.publish_json(str(tmp_path / "manifest.json"), {**raw, **change})
    with pytest.raises(UserError, match=r"is not as jobs/prepare\.py wrote it"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("labels is 'x'; no"), "labels is 'x'; no"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/train/0.parquet"),
            "reading failed: [Errno 28] No space left on device: '/d/train/0.parquet'. Nothing is "
            "committed; what is finished is kept; rerun the same command to resume there",
        ),
    ],
)
def test_what_fails_in_a_cluster_for_an_outside_reason_is_one_message(
    ray_cluster: None, error: Exception, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def task(item: dict[str, Any]) -> dict[str, int]:
        if item["number"] == 2:
            raise error
        return {"images": 1, "bytes": 1}

    with pytest.raises(UserError) as caught:
        tasks.run_tasks("reading", [{"number": number} for number in range(4)], task)
    assert str(caught.value) == message
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown and "ray" not in shown.lower()


def test_a_fault_of_the_program_in_a_cluster_keeps_its_traceback(ray_cluster: None) -> None:
    def task(item: dict[str, Any]) -> dict[str, int]:
        raise LookupError(f"no {item}")

    with pytest.raises(LookupError, match=r"no \{'number': 1\}"):
        tasks.run_tasks("reading", [{"number": 1}], task)


def test_the_same_bytes_come_out_of_a_cluster(
    serially: None, ray_cluster: None, pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    prepared(pictures, tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(plan, "UNIT_PIECES", 9)
    prepared(pictures, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("validation_share", 1.0, "less than 1"),
        ("max_bad_share", 2.0, "0 to 1"),
        ("rows_per_shard", 0, "1 or more"),
        ("jpeg_quality", 101, "1 to 100"),
        ("sides", (31,), "32 to 1024"),
        ("sides", (), "one or more, 32 to 1024"),
        ("strategies", (), "one or more of central, "),
        ("min_side", 300, "--stored-side, 256"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(field: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"{flag_of(field)} is .*{words}"):
        PrepareConfig(source="x", **{field: value})


def test_a_manifest_that_may_not_be_read_is_no_absent_one(
    dataset_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> bytes:
        raise UserError(f"{uri}: access was refused; look at the credentials")

    monkeypatch.setattr(objects, "read_bytes", refused)
    with pytest.raises(UserError, match=r"manifest\.json: access was refused"):
        read_manifest(dataset_uri)

"""Corrected labels and moved images become a new revision; the one before stays as it was."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_helpers import files_of, prepare_config, prepared, quarantine_of, rows_of
from helpers import ROOT, jpeg

from pipelines.data.manifest import Manifest, read_manifest
from pipelines.data.shards import read_row_group, row_groups
from pipelines.errors import UserError
from pipelines.prepare.run import prepare_dataset
from pipelines.prepare.verify import verify


def write(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def classes_of(uri: Path, manifest: Manifest) -> dict[str, str | None]:
    """Class of each key in a revision."""
    found = {}
    for split in manifest.splits:
        for group in row_groups(manifest, split):
            for row in read_row_group(str(uri), group, ["key", "label"]).to_pylist():
                label = row["label"]
                found[row["key"]] = None if label is None else manifest.classes[label]
    return found


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return write(tmp_path / "p", *(f"{n}.jpg" for n in range(8)))


def with_labels(flat: Path, uri: Path, labels: dict[int, str]) -> Manifest:
    path = flat.parent / "labels.csv"
    path.write_text("name,label\n" + "".join(f"{n}.jpg,{name}\n" for n, name in labels.items()))
    return prepared(flat, uri, labels=str(path), rows_per_shard=4, row_group_rows=2)


def test_corrected_labels_are_a_new_revision_without_a_new_shard(
    serially: None, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, before = tmp_path / "d", dict.fromkeys(range(8), "cat")
    old = with_labels(flat, uri, before)
    shards, rows = files_of(uri), rows_of(uri, "image", "sha256")
    new = with_labels(flat, uri, {**before, 3: "dog"})
    assert classes_of(uri, new) == {f"{n}.jpg": "dog" if n == 3 else "cat" for n in range(8)}
    assert rows_of(uri, "image", "sha256") == rows
    files = files_of(uri)
    assert {path: files[path] for path in shards} == shards
    assert len(files) == len(shards) + 1  # of the one shard in which some label changed
    assert (new.revision, new.relabelled, new.listed) == (1, 1, old.listed)
    assert new.fingerprint != old.fingerprint
    assert "labels: 1 image of the dataset in another class now" in capsys.readouterr().err
    verify(str(uri), new)
    assert read_manifest(str(uri), 0) == old
    assert set(classes_of(uri, old).values()) == {"cat"}


def test_labels_that_come_back_are_those_again_and_then_nothing_is_left_to_do(
    serially: None, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, first = tmp_path / "d", dict.fromkeys(range(8), "cat")
    second = {**first, 5: "owl"}
    for labels in (first, second, first, second):
        found = with_labels(flat, uri, labels)
        assert classes_of(uri, found) == {f"{n}.jpg": name for n, name in labels.items()}
    assert found.revision == 3
    assert all(len(file.sidecars) <= 1 for files in found.splits.values() for file in files)
    capsys.readouterr()
    assert with_labels(flat, uri, second) == found
    assert "already prepared" in capsys.readouterr().err


def test_labels_may_come_later_and_with_new_images(
    serially: None, flat: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "d"
    assert prepared(flat, uri, rows_per_shard=4, row_group_rows=2).classes == ()
    write(flat, *(f"{n}.jpg" for n in range(10)))
    found = with_labels(flat, uri, {n: "ab"[n % 2] for n in range(10)})
    assert classes_of(uri, found) == {f"{n}.jpg": "ab"[n % 2] for n in range(10)}
    assert (found.revision, found.relabelled, found.written) == (1, 8, 10)


def test_a_class_that_is_lost_is_refused_and_nothing_changes(
    serially: None, flat: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "d"
    old = with_labels(flat, uri, dict.fromkeys(range(8), "cat"))
    with pytest.raises(UserError, match=r"8 images of this source with a class.*'0.jpg': 'cat'"):
        prepare_dataset(prepare_config(flat, uri, rows_per_shard=4, row_group_rows=2))
    assert read_manifest(str(uri)) == old


def test_an_image_that_moved_to_another_class_is_of_that_class(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "p", "cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    uri = tmp_path / "d"
    prepared(source, uri)
    (source / "cat" / "1.jpg").rename(source / "dog" / "1.jpg")
    found = prepared(source, uri)
    assert classes_of(uri, found)["cat/1.jpg"] == "dog"
    assert (found.relabelled, found.contradictions, found.duplicates) == (1, 0, 1)
    assert quarantine_of(uri) == {"dog/1.jpg": "duplicate"}
    assert "1 of them by a move" in capsys.readouterr().err
    (source / "cat" / "0.jpg").unlink()  # another listing, so that the job runs
    again = prepared(source, uri)
    assert (again.relabelled, again.duplicates, again.written) == (1, 1, 5)
    (source / "dog" / "1.jpg").rename(source / "cat" / "1.jpg")
    assert classes_of(uri, prepared(source, uri))["cat/1.jpg"] == "cat"


def test_a_copy_in_another_class_or_another_source_moves_nothing(
    serially: None, tmp_path: Path
) -> None:
    source = write(tmp_path / "p", "cat/0.jpg", "cat/1.jpg", "dog/2.jpg")
    uri = tmp_path / "d"
    prepared(source, uri)
    (source / "dog" / "copy.jpg").write_bytes((source / "cat" / "1.jpg").read_bytes())
    found = prepared(source, uri)
    assert (found.relabelled, found.contradictions) == (0, 1)
    other = write(tmp_path / "q", "dog/7.jpg")  # the bytes of cat/0.jpg
    found = prepared(other, uri)
    assert (found.relabelled, found.contradictions) == (0, 2)
    assert classes_of(uri, found)["cat/0.jpg"] == "cat"


def test_a_new_name_in_its_class_is_stronger_than_a_copy_in_another(
    serially: None, tmp_path: Path
) -> None:
    source = write(tmp_path / "p", "cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    uri = tmp_path / "d"
    prepared(source, uri)
    shutil.copy(source / "cat" / "1.jpg", source / "dog" / "1.jpg")
    (source / "cat" / "1.jpg").rename(source / "cat" / "01.jpg")
    found = prepared(source, uri)
    assert classes_of(uri, found)["cat/1.jpg"] == "cat"
    assert (found.relabelled, found.contradictions, found.duplicates) == (0, 1, 2)


def test_an_entry_of_two_meanings_gives_a_held_image_no_class(
    serially: None, tmp_path: Path
) -> None:
    source = write(tmp_path / "p", "cat/0.jpg", "cat/1.jpg", "dog/2.jpg")
    labels = tmp_path / "l.csv"
    labels.write_text("a/cat/1.jpg,owl\n")
    uri = tmp_path / "d"
    old = prepared(source, uri, labels=str(labels))
    assert classes_of(uri, old)["cat/1.jpg"] == "owl"
    labels.write_text("a/cat/1.jpg,owl\nb/cat/1.jpg,elk\n")
    with pytest.raises(UserError, match=r"1 image of this source with a class.*1.jpg': 'owl'"):
        prepared(source, uri, labels=str(labels))
    assert read_manifest(str(uri)) == old


def test_an_image_in_another_split_now_keeps_its_own_and_is_told(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "p", "a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg")
    prepared(source, tmp_path / "d", val=("a/0.jpg", "b/2.jpg"))
    before = rows_of(tmp_path / "d")
    prepared(source, tmp_path / "d", val=("a/1.jpg", "b/2.jpg"))
    assert rows_of(tmp_path / "d") == before
    told = capsys.readouterr().err
    assert "warning: 2 images of this source in another split than the dataset has" in told


def test_a_dataset_of_an_earlier_version_is_extended_and_keeps_its_splits(
    serially: None, tmp_path: Path
) -> None:
    uri = tmp_path / "d"
    shutil.copytree(ROOT / "tests" / "earlier" / "dataset", uri)
    before, files = rows_of(uri, "label", "image"), files_of(uri)
    old = read_manifest(str(uri))
    source = write(
        tmp_path / "p", *(f"{name}/{n}.jpg" for name in ("pear", "fig") for n in range(4))
    )
    spec = old.masks[0]
    config = prepare_config(source, uri, sides=(spec.side,), stored_side=old.stored_side)
    strategies = tuple(dict.fromkeys(each.strategy for each in old.masks))
    variants = max(each.variants for each in old.masks)
    prepare_dataset(replace(config, strategies=strategies, variants=variants))
    after = rows_of(uri, "label", "image")
    assert {key: after[key] for key in before} == before
    assert {path: files_of(uri)[path] for path in files} == files
    assert read_manifest(str(uri)).classes == (*old.classes, "fig")
    assert read_manifest(str(uri), 0) == old

"""Classes as they come out: told in every table, never stale, never in silence."""

import gzip
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_helpers import prepare_config, prepared, quarantine_of, rows_of
from helpers import jpeg, tar_of

from pipelines.data.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.prepare import class_facts
from pipelines.prepare.run import prepare_dataset
from pipelines.prepare.sources.patterns import expand, expand_braces


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_classes(root: Path, **counts: int) -> Path:
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            put(root / name / f"{number}.jpg", jpeg(number))
            number += 1
    return root


def warned(**by_class: dict[str, int]) -> str:
    by_split = {"train": {}, "val": {}, **by_class}
    names = tuple(sorted({n for counts in by_split.values() for n in counts} - {"(none)"}))
    return "\n".join(class_facts.facts(by_split, names)["warnings"])


@pytest.mark.parametrize(
    ("by_class", "words"),
    [
        ({"train": {"cat": 3}}, "one class, 'cat', holds every image"),
        ({"train": {"images": 3, "x": 1}}, "1 class called 'images'"),
        ({"train": {"train": 3, "Val2017": 1}}, "2 classes called 'Val2017', 'train'"),
        ({"train": {".git": 3, "x": 1}}, "1 class with a hidden name: '.git'"),
        ({"train": {"a": 1, "b": 1}, "val": {"b": 1, "c": 1}}, "1 class in val only: 'c'"),
        ({"train": {"a": 1, "(none)": 2, "b": 1}}, "2 images without a class beside 2 classes"),
        ({"train": {"Cat": 1, "cat": 1}}, "look alike: 'Cat', 'cat'"),
        ({"train": {"a": 1, "b": 0}}, "1 class without an image: 'b'"),
        ({"val": {"a": 1, "b": 1}}, "no image to train on"),
    ],
)
def test_what_looks_wrong_is_said(by_class: dict[str, dict[str, int]], words: str) -> None:
    assert words in warned(**by_class)


def test_two_plain_classes_in_both_splits_need_no_warning() -> None:
    assert warned(train={"a": 3, "b": 4}, val={"a": 1, "b": 1}) == ""


def test_the_closing_table_and_the_dry_run_show_the_classes(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_classes(tmp_path / "p", cat=6, dog=4)
    put(source / "README", b"text")
    put(source / "top.jpg", jpeg(99))
    for dry in (True, False):
        prepare_dataset(prepare_config(source, tmp_path / "d", dry_run=dry, validation_share=0.0))
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert (
            "2 classes" in shown and "4 ('dog') to 6 images ('cat'); 1 image without one" in shown
        )
        assert "warning: 1 image without a class beside 2 classes" in shown
        assert "not read: 1 file like README or LICENSE" in shown


def test_a_class_whose_images_are_all_bad_is_no_class_and_told(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_classes(tmp_path / "p", cat=4, dog=4)
    put(source / "bad" / "1.jpg", b"<html>404</html>")
    manifest = prepared(source, tmp_path / "d")
    assert manifest.classes == ("cat", "dog")
    assert manifest.not_read == {"class name without a usable image, as 'bad'": 1}
    assert "of 1 class no image could be used: 'bad'" in capsys.readouterr().err


def test_a_label_list_comes_before_places_and_a_changed_one_is_never_in_silence(
    serially: None, tmp_path: Path
) -> None:
    source = write_classes(tmp_path / "p", cat=3, dog=3)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n0.jpg,owl\n")
    requested = {"labels": str(labels), "validation_share": 0.0}
    manifest = prepared(source, tmp_path / "d", **requested)
    found = {
        key: manifest.classes[label] for key, (_, label) in rows_of(tmp_path / "d", "label").items()
    }
    assert found["cat/0.jpg"] == "owl" and found["cat/1.jpg"] == "cat"
    labels.write_text("file,label\n0.jpg,elk\n")
    manifest = prepared(source, tmp_path / "d", **requested)
    assert (manifest.relabelled, manifest.classes) == (1, ("cat", "dog", "owl", "elk"))
    assert prepared(source, tmp_path / "other", **requested).classes == ("cat", "dog", "elk")


def test_of_equal_bytes_the_labelled_copy_stays_and_two_labels_are_a_contradiction(
    serially: None, tmp_path: Path
) -> None:
    source = write_classes(tmp_path / "p", cat=4)
    for number in range(3):
        shutil.copy(source / "cat" / f"{number}.jpg", source / f"all{number}.jpg")
    put(source / "dog" / "9.jpg", jpeg(9))
    shutil.copy(source / "cat" / "3.jpg", source / "dog" / "3.jpg")
    manifest = prepared(source, tmp_path / "d", validation_share=0.0)
    assert set(rows_of(tmp_path / "d")) == {*(f"cat/{n}.jpg" for n in range(4)), "dog/9.jpg"}
    assert manifest.contradictions == 1 and manifest.duplicates == 4
    assert quarantine_of(tmp_path / "d")["dog/3.jpg"] == "duplicate"


def test_a_bare_name_that_two_images_have_is_refused(serially: None, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        put(tmp_path / "p" / split / "1.jpg", jpeg(number))
    labels = tmp_path / "labels.txt"
    labels.write_text("1.jpg cat\n")
    with pytest.raises(UserError, match=r"names '1.jpg', and 2 images"):
        prepared(tmp_path / "p", tmp_path / "d", labels=str(labels))
    labels.write_text("train/1.jpg cat\nval/1.jpg dog\n")
    assert prepared(tmp_path / "p", tmp_path / "d", labels=str(labels)).classes == ("cat", "dog")


def test_a_list_that_names_only_validation_is_one_message(serially: None, tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / "p" / "train" / f"t_{number}.jpg", jpeg(number))
        put(tmp_path / "p" / "val" / f"v_{number}.jpg", jpeg(10 + number))
    (tmp_path / "truth.txt").write_text("2\n1\n3\n2\n")
    with pytest.raises(UserError, match="label list names none of the 4 images of train"):
        prepared(tmp_path / "p", tmp_path / "d", labels=str(tmp_path / "truth.txt"))


def test_a_list_that_leaves_out_one_image_of_train_in_an_archive_passes(
    serially: None, tmp_path: Path
) -> None:
    files = {f"{split}/{n}.jpg": jpeg(n) for n, split in enumerate(["train"] * 4 + ["val"] * 2)}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    labels = tmp_path / "l.csv"
    labels.write_text("".join(f"{name},cat\n" for name in list(files)[1:]))
    manifest = prepared(tmp_path / "a.tar", tmp_path / "d", labels=str(labels))
    assert (manifest.rows("train"), manifest.rows("val")) == (3, 2)
    assert manifest.quarantine == {"missing_label": 1}
    labels.write_text("val/4.jpg,cat\nval/5.jpg,cat\n")
    with pytest.raises(UserError, match="label list names none of the 4 images of train"):
        prepared(tmp_path / "a.tar", tmp_path / "e", labels=str(labels))


def test_the_fault_that_is_told_first_is_no_duplicate(serially: None, tmp_path: Path) -> None:
    source = write_classes(tmp_path / "p", cat=3)
    prepared(source, tmp_path / "d")
    for number in range(3):
        shutil.copy(source / "cat" / "0.jpg", source / "cat" / f"copy{number}.jpg")
    put(source / "cat" / "bad.jpg", b"text")
    with pytest.raises(UserError, match=r"3 duplicate.*the first unidentified is 'cat/bad\.jpg'"):
        prepared(source, tmp_path / "d", max_bad_images=0)


def test_composed_and_decomposed_names_are_one_class(serially: None, tmp_path: Path) -> None:
    for number, (split, name) in enumerate((("train", "caf\u00e9"), ("val", "cafe\u0301"))):
        put(tmp_path / "p" / split / name / "1.jpg", jpeg(number))
    assert prepared(tmp_path / "p", tmp_path / "d").classes == ("caf\u00e9",)


def test_validation_is_drawn_from_all_that_has_no_split(serially: None, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, count in (("s/train/cat", 30), ("s/train/dog", 30), ("s/extra", 20)):
            for number in range(count):
                put(tmp_path / name / f"{number}.jpg", jpeg(1000 * len(name) + number))
        archive.add(tmp_path / "s", "s")
    prepared(tmp_path / "s.tar", tmp_path / "d", validation_share=0.4)
    drawn = [key for key, (split,) in rows_of(tmp_path / "d").items() if split == "val"]
    assert {key.split("/")[1] for key in drawn} == {"train", "extra"}


def test_sources_are_files_braces_globs_and_several(tmp_path: Path) -> None:
    for name in ("a/x-000.tar", "a/x-001.tar", "b/y.jpg", "photos {2023}/1.jpg"):
        put(tmp_path / name, b"x")

    def paths(*sources: str) -> list[str]:
        return [named.path for named in expand(tuple(f"{tmp_path}/{s}" for s in sources))]

    assert paths("a/x-{000..001}.tar") == paths("a/*.tar") == ["x-000.tar", "x-001.tar"]
    assert paths("a/x-{000,001}.tar") == ["x-000.tar", "x-001.tar"]
    assert paths("{a,b}/*") == ["a/x-000.tar", "a/x-001.tar", "b/y.jpg"]
    assert paths("photos {2023}") == [""] and paths("a", "b") == ["a", "b"]
    for source, words in (
        ("a/x-{000..003}.tar", r"2 of 4 are not there: '.*x-002.tar' and 1 more"),
        ("a/x-000.tar::b/y.jpg", "give several sources"),
        ("a/*.zip", "no file below .* matches"),
        ("a/{x}", "a rising range or words"),
    ):
        with pytest.raises(UserError, match=words):
            paths(source)
    assert expand_braces("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]


def test_strays_are_told_and_cost_no_budget_among_images_alone(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_classes(tmp_path / "p", cat=3, dog=3)
    put(source / "cat" / "inner.zip", b"PK\3\4")
    put(source / "dog" / "vision309", b"some text")
    put(source / "labels.csv", b"file,label\n")
    manifest = prepared(source, tmp_path / "d")
    assert manifest.not_read == {
        ".csv": 1,
        "archive too short to be one": 1,
        "file with no suffix and no image in it": 1,
    }
    assert (manifest.listed, manifest.quarantined) == (6, 0)
    assert "note:" not in capsys.readouterr().err
    (tmp_path / "list.txt").write_text(f"{source}/cat/0.jpg\n{source}/dog/vision309\n")
    assert prepared(tmp_path / "list.txt", tmp_path / "l").quarantine == {"unidentified": 1}


def test_a_broken_archive_among_others_is_named_with_its_reason(
    serially: None, tmp_path: Path
) -> None:
    put(tmp_path / "s" / "a.zip", b"PK\3\4")
    with tarfile.open(tmp_path / "s" / "b.tar", "w") as archive:
        put(tmp_path / "1.jpg", jpeg(1))
        archive.add(tmp_path / "1.jpg", "1.jpg")
    with pytest.raises(UserError, match=r"1 archive broken, such as 'a/@0'.*it was cut, or is no"):
        prepared(tmp_path / "s", tmp_path / "d")


def test_a_label_file_beside_images_without_a_class_is_named(
    serially: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        put(tmp_path / "p" / f"{number}.jpg", jpeg(number))
    put(tmp_path / "p" / "labels.csv", b"file,label\n0.jpg,cat\n")
    prepared(tmp_path / "p", tmp_path / "d")
    assert "'labels.csv' beside them is not read: give it as --labels" in capsys.readouterr().err


def test_a_label_list_may_say_splits(serially: None, tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "p" / f"{number}.jpg", jpeg(number))
    rows = zip(range(6), "aabbab", "train val train val test train".split(), strict=True)
    text = "file;label;split\n" + "".join(f"{n}.jpg;{label};{split}\n" for n, label, split in rows)
    (tmp_path / "l.csv").write_text(text)
    manifest = prepared(tmp_path / "p", tmp_path / "d", labels=str(tmp_path / "l.csv"))
    held = {key: split for key, (split,) in rows_of(tmp_path / "d").items()}
    assert held == {f"{n}.jpg": "val" if n in (1, 3) else "train" for n in (0, 1, 2, 3, 5)}
    assert manifest.not_read == {"image in the test part of the label list": 1}
    (tmp_path / "only.csv").write_text("file,split\n0.jpg,train\n")
    with pytest.raises(UserError, match="a column of splits and none of labels"):
        prepared(tmp_path / "p", tmp_path / "e", labels=str(tmp_path / "only.csv"))


def test_several_sources_hold_classes_or_are_classes(serially: None, tmp_path: Path) -> None:
    for number, name in enumerate(("a/cat/0.jpg", "a/dog/0.jpg", "b/cat/0.jpg", "b/owl/0.jpg")):
        put(tmp_path / name, jpeg(number))

    def classes(*names: str) -> tuple[str, ...]:
        requested = prepare_config("several", tmp_path / f"of-{names[0]}")
        sources = tuple(str(tmp_path / name) for name in names)
        return read_manifest(prepare_dataset(replace(requested, source=sources))).classes

    assert classes("a", "b") == ("cat", "dog", "owl")
    for number, name in enumerate(("cats/0.jpg", "dogs/0.jpg")):
        put(tmp_path / name, jpeg(number))
    assert classes("cats", "dogs") == ("cats", "dogs")


def test_several_sources_may_hold_streamed_archives_in_their_classes(
    serially: None, tmp_path: Path
) -> None:
    places = ("a/cat", "a/dog", "b/cat", "b/owl")
    for number, place in enumerate(places):
        put(tmp_path / place / "s.tar.gz", gzip.compress(tar_of({"0.jpg": jpeg(number)})))
    config = prepare_config("several", tmp_path / "d")
    sources = (str(tmp_path / "a"), str(tmp_path / "b"))
    found = read_manifest(prepare_dataset(replace(config, source=sources)))
    assert found.classes == ("cat", "dog", "owl") and found.written == 4


def test_hive_folders_of_images_name_split_and_class(serially: None, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "validation")):
        put(tmp_path / "p" / f"split={split}" / "label=cat" / f"{number}.jpg", jpeg(number))
    manifest = prepared(tmp_path / "p", tmp_path / "d")
    assert manifest.classes == ("cat",) and manifest.rows("val") == 1

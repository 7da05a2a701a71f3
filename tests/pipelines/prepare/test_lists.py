"""Lists of images and of labels in the spellings people write them."""

import json
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.prepare.sources.labels import AmbiguousLabel, Labels, read_labels
from pipelines.prepare.sources.lists import read_rows

CATS = {"0.jpg": "cat", "1.jpg": "dog"}


def rows(path: Path, text: str, name: str = "list.csv") -> dict[str, str | None]:
    (path / name).write_text(text, encoding="utf-8", newline="")
    return {row.name: row.label for row in read_rows(str(path / name), "--source")}


@pytest.mark.parametrize(
    "text",
    [
        "image_path,label\n0.jpg,cat\n1.jpg,dog\n",
        "Path,Class\n0.jpg,cat\n1.jpg,dog\n",
        "label,file_name\ncat,0.jpg\ndog,1.jpg\n",
        ",filename,label\n0,0.jpg,cat\n1,1.jpg,dog\n",
        "filename,width,height,breed\n0.jpg,48,40,cat\n1.jpg,48,40,dog\n",
        "file,diagnosis\n0.jpg,cat\n1.jpg,dog\n",
        "url;target\n0.jpg;cat\n1.jpg;dog\n",
        "image\tlabel\n0.jpg\tcat\n1.jpg\tdog\n",
        '"filename","label"\r\n"0.jpg","cat"\r\n"1.jpg","dog"\r\n',
        "\ufefffilename,label\r\n0.jpg,cat\r\n1.jpg,dog\r\n",
        "id,filename,label\n7,0.jpg,cat\n8,1.jpg,dog\n",
        "0.jpg,cat\n1.jpg,dog\n",
        "0.jpg cat\n# a comment\n\n1.jpg dog\n",
        "0.jpg\tcat\n1.jpg\tdog\n",
        "0.jpg;cat\n1.jpg;dog\n",
        '{"file_name": "0.jpg", "label": "cat"}\n{"file_name": "1.jpg", "label": "dog"}\n',
    ],
)
def test_every_spelling_of_a_list_says_the_same(tmp_path: Path, text: str) -> None:
    assert rows(tmp_path, text) == CATS
    assert read_labels(str(tmp_path / "list.csv"), None).by_name == CATS


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("w_303,h_170,al_c/x.jpg", "w_303,h_170,al_c/x.jpg", None),
        ("my photo 1.jpg", "my photo 1.jpg", None),
        ("my photo 1.jpg golden retriever", "my photo 1.jpg", "golden retriever"),
        ('"a, b.jpg",cat', "a, b.jpg", "cat"),
        ("train\\cat\\1.jpg,cat", "train/cat/1.jpg", "cat"),
        ("/a/airfield/1.jpg 0", "/a/airfield/1.jpg", "0"),
        ("https://x/i?id=3,4 cat", "https://x/i?id=3,4", "cat"),
        ("x_00000001 7", "x_00000001", "7"),
        ("https://x/w_1,h_2/a.jpg,cat", "https://x/w_1,h_2/a.jpg", "cat"),
    ],
)
def test_a_name_ends_where_an_image_does(
    tmp_path: Path, line: str, name: str, label: str | None
) -> None:
    assert rows(tmp_path, line + "\n", "list.txt") == {name: label}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.jpg cat\n1.jpg 48 dog 3\n", "line 2 has '48 dog 3' behind the name '1.jpg'"),
        ("0.jpg 0.png\n", "line 1 holds two names of images"),
        (
            "filename,label\na, b.jpg\n\n0.jpg\n",
            r"line 4 holds \['0.jpg'\], 1 of the 2 columns filename, label",
        ),
        ('{"image": {"path": "a.jpg"}}\n', "line 1 has .* in 'image'; it must be the path"),
        ("filename,split\n0.jpg,holdout\n", "line 2 has the split 'holdout'"),
        ('{"file_name": "0.jpg"}\n{"caption": 3}\n', "line 2 names no image"),
        ('{"file_name": "0.jpg"}\nnot json\n', "line 2 is no JSON"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_with_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        rows(tmp_path, text)


def test_two_splits_of_one_name_are_refused_as_two_labels_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label,split\n0.jpg,a,train\n./0.jpg,a,val\n")
    with pytest.raises(UserError, match=r"line 3 gives '0.jpg' the split 'val', an earlier one"):
        read_labels(str(tmp_path / "a.csv"), None)


def test_a_column_gives_splits_and_one_of_no_known_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,split,p,q\n0.jpg,train,1,2\n1.jpg,Validation,1,2\n")
    notes: list[str] = []
    found = list(read_rows(str(tmp_path / "a.csv"), "--source", notes))
    assert [(row.split, row.label) for row in found] == [("train", None), ("val", None)]
    assert "of p, q, name the one that holds them 'label'" in notes[0]
    (tmp_path / "b.csv").write_text("name,label,is_valid\n0.jpg,cat,False\n1.jpg,cat,True\n")
    assert [r.split for r in read_rows(str(tmp_path / "b.csv"), "")] == ["train", "val"]


def test_a_label_finds_its_image_by_key_by_its_end_or_by_its_name() -> None:
    labels = Labels({"train/1.jpg": "cat", "val/1.jpg": "dog", "x/y/2.jpg": "owl", "3": "elk"}, ())
    assert labels.of("train/1.jpg") == "cat" and labels.of("p/val/1.jpg") == "dog"
    assert labels.of("2.jpg") == labels.of("y/2.jpg") == "owl" and labels.of("a/3.jpg") == "elk"
    assert labels.of("other/1.jpg") is None
    with pytest.raises(AmbiguousLabel, match=r"train/1.jpg and val/1.jpg"):
        labels.of("1.jpg")


def test_one_label_per_line_never_names_an_image_in_train() -> None:
    labels = Labels({}, ("a", "b"))
    assert labels.of("val/x_2.jpg", "val") == labels.of("x_2.jpg", None) == "b"
    assert labels.of("train/x_2.jpg", "train") is None


def write(path: Path, name: str, lines: list[str]) -> str:
    (path / name).write_text("\n".join(lines) + "\n")
    return str(path / name)


def test_numbers_are_counted_from_0_or_from_1_by_the_whole_list_or_as_said(tmp_path: Path) -> None:
    names = write(tmp_path, "names.txt", [f"n0{i} name" for i in range(1, 6)])

    def read(lines: list[str], base: int | None = None) -> list[str]:
        found = read_labels(write(tmp_path, "labels.txt", lines), names, base)
        return [*found.by_number, *found.by_name.values()]

    assert read(["2", "1", "3"]) == ["n02", "n01", "n03"]  # the official form counts from 1
    assert read(["a.jpg 0", "b.jpg 4"]) == ["n01", "n05"]
    assert read(["a.jpg 1", "b.jpg 5"]) == ["n01", "n05"]
    with pytest.raises(UserError, match=r"from 0 or from 1. Say it with --label-base"):
        read(["a.jpg 1", "b.jpg 4"])
    assert read(["a.jpg 1", "b.jpg 4"], 0) == ["n02", "n05"]
    assert read(["a.jpg n03"]) == ["n03"]


def test_contradictions_in_lists_are_refused_and_the_wrong_order_of_synsets_is_told(
    tmp_path: Path,
) -> None:
    labels = write(tmp_path, "labels.txt", ["0.jpg 0", "1.jpg 1"])
    twice = write(tmp_path, "twice.txt", ["tench", "crane", "crane"])
    with pytest.raises(UserError, match="'crane' is class 2 and class 3"):
        read_labels(labels, twice)
    with pytest.raises(UserError, match=r"line 2 gives '0.jpg' the label 'dog'.*'cat'"):
        read_labels(write(tmp_path, "same.txt", ["0.jpg cat", "0.jpg dog"]), None)
    synsets = write(tmp_path, "synsets.txt", [f"n0144076{i} x" for i in range(3)])
    notes: list[str] = []
    read_labels(write(tmp_path, "truth.txt", ["3", "1", "2"]), synsets, None, notes)
    assert "follow the order of the devkit" in notes[0]


def test_jsonl_of_hugging_face_may_hold_numbers(tmp_path: Path) -> None:
    lines = [json.dumps({"image": f"{n}.png", "label": n % 2}) for n in range(4)]
    assert rows(tmp_path, "\n".join(lines), "metadata.jsonl") == {
        f"{n}.png": str(n % 2) for n in range(4)
    }

"""One rule for splits and classes: names, trees, and a folder beside an archive of it."""

import random
import string
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from helpers import tar_of

from pipelines.errors import UserError
from pipelines.prepare.sources import listing
from pipelines.prepare.sources.globs import matched
from pipelines.prepare.sources.layout import Layout, Rules, class_in_name, place
from pipelines.prepare.sources.readers import Beside, members
from pipelines.prepare.sources.splits import named_split
from pipelines.prepare.sources.survey import survey

Placed = dict[str, tuple[str | None, str | None]]


def placed(source: Path, rules: Rules = Rules()) -> tuple[Placed, Counter[str]]:  # noqa: B008
    """Split and class by key, and what is not read."""
    found, beside = listing.Found.empty(), Beside.empty()
    pieces = list(listing.pieces(str(source), None, rules, found))
    everything = [member for piece in pieces for member in members(piece, beside)]
    return {m.key: (m.split, m.class_name) for m in everything}, found.others + beside.others


def write_tree(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("TRAIN", "train"), ("Training_set", "train"), ("train2017", "train"),
        ("train_256", "train"), ("train-00000-of-00004", "train"), ("trainval", "train"),
        ("train_images", "train"), ("split=train", "train"), ("train_64x64", "train"),
        ("val", "val"), ("Valid", "val"), ("validation", "val"), ("dev", "val"), ("val2017", "val"),
        ("test", "test"), ("tests", "test"), ("test-000", "test"), ("eval", "test"),
    ],
)  # fmt: skip
def test_a_name_that_speaks_of_a_split_alone_is_exact(name: str, split: str) -> None:
    assert named_split(name) == (split, ())


@pytest.mark.parametrize("name", ["cat", "valley", "contest", "images", "train_test", "trainer"])
def test_a_name_that_speaks_of_no_split_or_of_two_is_none(name: str) -> None:
    assert named_split(name) is None


def where(folders: dict[str, int], rules: Rules = Rules()) -> dict[str, tuple[str, str]]:  # noqa: B008
    """Split and class of each folder, `-` where there is none; left out ones are not in it."""
    rule = survey("s", folders, rules).layout
    found = {f: place(rule, tuple(f.split("/")) if f else (), "n01_2.jpg") for f in folders}
    return {f: (p.split or "-", p.class_name or "-") for f, p in found.items() if not p.left_out}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("a/train/cat a/val/cat a/test", {"a/train/cat": "train cat", "a/val/cat": "val cat"}),
        ("cars_train cars_test", {"cars_train": "train -"}),
        ("I_img_train I_img_val", {"I_img_train": "train -", "I_img_val": "val -"}),
        ("images/train images/val", {"images/train": "train -", "images/val": "val -"}),
        ("train/n01/images train/n02/images val/images",
         {"train/n01/images": "train n01", "train/n02/images": "train n02", "val/images": "val -"}),
        ("cat/train cat/val dog/train dog/val",
         {"cat/train": "train cat", "cat/val": "val cat", "dog/train": "train dog",
          "dog/val": "val dog"}),
        ("bullet_train cat", {"bullet_train": "- bullet_train", "cat": "- cat"}),
        ("train_inside train_outside bus", 
         {"train_inside": "- train_inside", "train_outside": "- train_outside", "bus": "- bus"}),
        ("train/images/a train/images/b val/images/a",
         {"train/images/a": "train a", "train/images/b": "train b", "val/images/a": "val a"}),
        ("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a",
         {"seg_train/seg_train/a": "train a", "seg_train/seg_train/b": "train b"}),
        ("train/train test/test", {"train/train": "train -"}),
        ("set/cat set/dog", {"set/cat": "- cat", "set/dog": "- dog"}),
        ("cat", {"cat": "- cat"}),
        ("images", {"images": "- -"}),
        ("a/x b/y/z", {"a/x": "- a", "b/y/z": "- b"}),
        ("s/train/cat s/train/dog s/more",
         {"s/train/cat": "train cat", "s/train/dog": "train dog", "s/more": "- more"}),
    ],
)  # fmt: skip
def test_the_rule_on_plain_trees(folders: str, expected: dict[str, str]) -> None:
    found = where(dict.fromkeys(folders.split(), 2))
    assert {folder: " ".join(both) for folder, both in found.items()} == expected


@pytest.mark.parametrize(
    "folders", ["train val cat", "train bus car", "test bus", "a/train a/val b/cat", "val extra"]
)
def test_where_the_rule_is_unsure_it_refuses_and_says_how(folders: str) -> None:
    with pytest.raises(UserError, match=r"belong to no split.*--train and --val"):
        survey("s", dict.fromkeys(folders.split(), 2))
    rest = where(dict.fromkeys(folders.split(), 2), Rules(train=("**",)))
    assert {split for split, _ in rest.values()} == {"train"} and len(rest) == len(folders.split())


def test_a_test_part_alone_is_refused_unless_it_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"test part, 'test'.*--train 'test'"):
        survey("s", {"test/cat": 3})
    assert where({"test/cat": 3}, Rules(train=("test",))) == {"test/cat": ("train", "cat")}


@pytest.mark.parametrize(
    ("pattern", "path", "depth"),
    [
        ("train", "train/cat/1.jpg", 1),
        ("train/*", "train/cat/1.jpg", 1),
        ("*/train", "a/train/1.jpg", 2),
        ("**", "a/b/1.jpg", 0),
        ("**/val", "a/b/val/1.jpg", 0),
        ("data/val-*.parquet", "data/val-0.parquet", 1),
        ("val/*/*.jpg", "val/cat/1.jpg", 1),
        ("*/0*.jpg", "cat/01.jpg", 0),
        ("cat/1.jpg", "cat/1.jpg", 0),
        ("train", "train2/1.jpg", None),
        ("*.jpg", "a/1.jpg", None),
    ],
)
def test_a_pattern_is_a_folder_or_a_glob(pattern: str, path: str, depth: int | None) -> None:
    assert matched(pattern, path) == depth


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n01440764_36.JPEG", "n01440764"),
        ("cat.12.jpg", "cat"),
        ("great_pyrenees_7.png", "great_pyrenees"),
        ("IMG.jpg", None),
        ("0001.jpg", None),
    ],
)
def test_a_file_name_begins_with_its_class(name: str, expected: str | None) -> None:
    assert class_in_name(name) == expected
    where = place(Layout(rules=Rules(class_from="name")), ("train",), name)
    assert where.class_name == expected


def test_the_four_ways_to_say_the_class() -> None:
    tree = {"train/a/b": 1, "val/a/b": 1}
    for said, expected in (("first", "a"), ("parent", "b"), ("name", "n01"), ("none", "-")):
        found = where(tree, Rules(class_from=said))  # type: ignore[arg-type]
        assert {name for _, name in found.values()} == {expected}


def random_tree(seed: int) -> list[str]:
    rng = random.Random(seed)
    splits = rng.choice(
        [[""], ["train"], ["train", "val"], ["Train", "Valid", "test"], ["train_9", "test_9"]]
    )
    wrapper = rng.choice(["", "", "set/", "data/x/"])
    classes = rng.sample([*string.ascii_lowercase[:5], "train", "images", ".hidden", "café"], 3)
    below = rng.choice(["", "", "images/", "deep/"])
    extra = rng.choice([[], [], ["extra/e.jpg"], ["top.jpg"], ["train/t.jpg"]])
    suffix = rng.choice([".jpg", ".png"])
    names = [
        f"{wrapper}{split}/{name}/{below}{number}{suffix}"
        for split in splits
        for name in rng.choice([classes, classes[:1]])
        for number in range(2)
    ]
    maps = [n.replace("/a/", "/masks/").replace(suffix, ".png") for n in names if "/a/" in n]
    return sorted(
        {
            n.replace("//", "/").lstrip("/")
            for n in (*names, *extra, *(maps if seed % 3 == 0 else []))
        }
    )


def outcome(source: Path) -> tuple[Placed, Counter[str]] | str:
    try:
        return placed(source)
    except UserError as refusal:
        return str(refusal).replace(str(source), "SOURCE")


@pytest.mark.parametrize("seed", range(60))
def test_a_folder_and_a_tar_of_it_have_the_same_keys_splits_and_classes(
    seed: int, tmp_path: Path
) -> None:
    names = random_tree(seed)
    root = write_tree(tmp_path / "tree", names)
    (tmp_path / "tree.tar").write_bytes(tar_of({name: name.encode() for name in names}))
    assert outcome(root) == outcome(tmp_path / "tree.tar")


def test_one_tar_per_class_gives_the_class_and_shards_give_none(tmp_path: Path) -> None:
    for folder, names in (("classes", ("n01440764", "n01443537")), ("shards", ("s-0", "s-1"))):
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.tar").write_bytes(tar_of({f"{name}_1.jpg": b"x"}))
    assert {name for _, name in placed(tmp_path / "classes")[0].values()} == {
        "n01440764", "n01443537"
    }  # fmt: skip
    assert {name for _, name in placed(tmp_path / "shards")[0].values()} == {None}


def test_label_maps_are_no_images_unless_asked_for_and_masked_faces_are(tmp_path: Path) -> None:
    names = [f"JPEGImages/{n:03}.jpg" for n in range(6)]
    maps = [f"SegmentationClass/{n:03}.png" for n in range(3)]
    beside = [f"b/{n}.jpg" for n in range(3)] + [f"b/{n}_mask.png" for n in range(3)]
    voc = write_tree(tmp_path / "voc", names + maps)
    found, others = placed(voc)
    assert set(found) == set(names) and {name for _, name in found.values()} == {None}
    assert others == {"image left out as a label map, in 'SegmentationClass'": 3}
    assert len(placed(voc, Rules(train=("**",)))[0]) == 9
    assert len(placed(write_tree(tmp_path / "beside", beside))[0]) == 3
    faces = [f"{kind}_mask/{n}.png" for kind in ("with", "without") for n in range(3)]
    assert len(placed(write_tree(tmp_path / "faces", faces))[0]) == 6


def test_names_of_a_streamed_archive_are_held_against_the_whole(
    serially: None, tmp_path: Path
) -> None:
    from dataset_helpers import prepared, rows_of
    from helpers import jpeg

    def stream(name: str, *folders: str) -> Path:
        with tarfile.open(tmp_path / name, "w:gz"):
            pass
        files = {
            f"{folder}/{n}.jpg": jpeg(10 * place + n)
            for place, folder in enumerate(folders)
            for n in range(3)
        }
        import gzip

        (tmp_path / name).write_bytes(gzip.compress(tar_of(files)))
        return tmp_path / name

    prepared(stream("a.tgz", "set/train/cat", "set/test/cat"), tmp_path / "a")
    assert len(rows_of(tmp_path / "a")) == 3
    with pytest.raises(UserError, match="belong to no split"):
        prepared(stream("b.tgz", "bus", "car", "train"), tmp_path / "b")
    with pytest.raises(UserError, match=r"folder 'a/x'.*class 'x'.*class 'a'.*--class-from parent"):
        prepared(stream("c.tgz", "a/x", "b/y"), tmp_path / "c")
    prepared(tmp_path / "c.tgz", tmp_path / "c", class_from="parent")
    assert len(rows_of(tmp_path / "c")) == 6

"""What sources hold: every kind of source, and archives and tables that mean harm."""

import functools
import gzip
import io
import json
import os
import pickle
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import add_member, jpeg, tar_of

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources import listing, ranges, tables, tars
from pipelines.prepare.sources import member as member_module
from pipelines.prepare.sources.labels import read_labels
from pipelines.prepare.sources.piece import Piece
from pipelines.prepare.sources.readers import Beside, Member, members
from pipelines.storage import listing as storage_listing
from pipelines.storage import objects


def found(source: Path | str, others: Counter[str] | None = None) -> list[Piece]:
    return list(listing.pieces(str(source), Counter() if others is None else others))


def pictures(source: Path | str) -> dict[str, Member]:
    """All members of all pieces by key; no key may come twice."""
    everything = [member for piece in found(source) for member in members(piece)]
    by_key = {member.key: member for member in everything}
    assert len(by_key) == len(everything)
    return by_key


def told(source: Path | str) -> Counter[str]:
    """What is in the archives of a source and not read."""
    beside = Beside.empty()
    for piece in found(source):
        list(members(piece, beside))
    return beside.others


def placed(source: Path | str) -> dict[str, tuple[str | None, str | None]]:
    return {key: (m.split, m.class_name) for key, m in sorted(pictures(source).items())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    return tmp_path / "s"


def put(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_class_folders_give_classes_and_split_folders_give_splits(folder: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/deep/2.JPEG", "val/cat/3.png", "validation.txt"):
        put(folder / name)
    assert placed(folder) == {
        "train/cat/1.jpg": ("train", "cat"),
        "train/dog/deep/2.JPEG": ("train", "dog"),
        "val/cat/3.png": ("val", "cat"),
    }


def test_a_folder_of_images_beside_split_folders_is_refused_and_others_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train/cat/1.jpg", "Val/cat/2.jpg", "test/3.jpg", "test2017/4.jpg", "top.jpg"):
        put(folder / name)
    for name in ("notes/a.txt", ".git/5.jpg", "__MACOSX/._6.jpg", "lost+found/7.txt"):
        put(folder / name)
    names = storage_listing._names

    def refusing(place: Path) -> Iterator[str]:
        if place.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return names(place)

    monkeypatch.setattr(storage_listing, "_names", refusing)
    assert set(placed(folder)) == {"train/cat/1.jpg", "Val/cat/2.jpg"}
    others: Counter[str] = Counter()
    found(folder, others)
    assert others == {
        "image beside the splits": 1,
        "image in the test part 'test'": 1,
        "image in the test part 'test2017'": 1,
        "image with a hidden name": 2,
        ".txt": 1,
    }
    for name in ("bus/deep/1.JPEG", "car/2.png"):
        put(folder / name)
    with pytest.raises(UserError, match=r"beside 'Val', 'test', 'test2017' .*such as 'bus', 'car'"):
        found(folder)


def test_a_flat_folder_has_no_classes_and_other_files_are_counted_by_kind(folder: Path) -> None:
    for name in ("1.jpg", "no_suffix", "notes.txt", "more.txt", "x.xml", ".DS_Store", ".hid/4.jpg"):
        put(folder / name)
    others: Counter[str] = Counter()
    assert [piece.key for piece in found(folder, others)] == ["1.jpg", "no_suffix"]
    assert others == {".txt": 2, ".xml": 1, "image with a hidden name": 1}


def test_links_are_followed_but_never_in_a_circle(folder: Path, tmp_path: Path) -> None:
    put(folder / "cat" / "1.jpg")
    put(tmp_path / "elsewhere" / "2.jpg")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "round").symlink_to(folder)
    (folder / "cat" / "gone.jpg").symlink_to(folder / "nothing")
    by_key = pictures(folder)
    assert set(by_key) == {"cat/1.jpg", "cat/gone.jpg", "dog/2.jpg"}
    assert by_key["cat/gone.jpg"].fault is not None
    assert by_key["cat/gone.jpg"].fault.kind == "unreadable"


def test_names_that_are_not_utf8_and_twins_in_unicode_stay_apart(folder: Path) -> None:
    for name in (b"caf\xe9.jpg", "cafe\u0301.jpg".encode(), "caf\u00e9.jpg".encode(), b"a" * 251):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"x")
    keys = set(pictures(folder))
    assert len(keys) == 4
    assert "caf\\xe9.jpg" in keys
    assert all(key.encode() for key in keys)


def test_a_large_folder_is_sorted_in_runs_as_a_small_one_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.jpg".encode() for number in range(17)]
    names += [b"two\nlines.jpg", b"caf\xe9.jpg", "caf\u00e9.jpg".encode(), b'"\\.jpg', b"deep"]
    for name in names[:-1]:
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"x")
    put(folder / "deep" / "1.jpg")
    small = found(folder)
    monkeypatch.setattr(storage_listing, "NAMES_AT_ONCE", 4)
    assert found(folder) == small
    assert len(small) == len(names)


def test_a_file_that_vanishes_is_reported_and_one_that_changes_fails_the_job(folder: Path) -> None:
    put(folder / "1.jpg")
    (piece,) = found(folder)
    put(folder / "1.jpg", b"longer")
    with pytest.raises(OSError, match="6 bytes; 1 were listed"):
        list(members(piece))
    (folder / "1.jpg").unlink()
    (member,) = members(piece)
    assert member.fault is not None and member.fault.kind == "unreadable"


def test_a_name_that_no_file_can_have_is_reported_at_once(folder: Path) -> None:
    (folder / "round.jpg").symlink_to("round.jpg")
    put(folder / "a.txt", b"round.jpg\n" + b"x" * 300 + b".jpg\nzero\0byte.jpg\nfolder/a\0.jpg\n")
    faults = [member.fault for member in pictures(folder / "a.txt").values()]
    assert [fault and fault.kind for fault in faults] == ["unreadable"] * 4
    assert "symbolic links" in str(faults[0]) and "too long" in str(faults[1])


def test_a_device_or_a_pipe_in_a_list_is_reported_and_never_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("/dev/zero")
    put(folder / "a.txt", b"/dev/zero\npipe.jpg\nlink.jpg\n")
    faults = [member.fault for member in pictures(folder / "a.txt").values()]
    assert [fault and fault.kind for fault in faults] == ["unreadable"] * 3
    assert all("a device or a pipe, not a file" in str(fault) for fault in faults)


def test_access_refused_is_a_fault_of_a_local_file_and_ends_the_job_with_a_remote_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(uri: str) -> bytes:
        raise PermissionError("The provided token has expired.")

    monkeypatch.setattr(storage, "read_bytes", refusing)
    (member,) = members(Piece("file", "/p/1.jpg", "1.jpg", 5))
    assert member.fault is not None and member.fault.kind == "unreadable"
    with pytest.raises(
        OSError, match=r"access to s3://b/1.jpg was refused .*expired.*; check cred"
    ):
        list(members(Piece("file", "s3://b/1.jpg", "1.jpg", 5)))


@pytest.mark.parametrize(("make", "words"), [(False, "no such"), (True, "empty")])
def test_a_source_that_is_not_there_or_empty_is_refused(
    tmp_path: Path, make: bool, words: str
) -> None:
    source = tmp_path / "source"
    if make:
        source.mkdir()
    with pytest.raises(UserError, match=words):
        found(source)


def test_any_filesystem_that_fsspec_knows_will_do() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/sources-test/cat/1.jpg", jpeg(1))
    memory.pipe("/sources-test/pack.tar", tar_of({"dog/2.jpg": jpeg(2)}))
    assert placed("memory://sources-test") == {
        "cat/1.jpg": (None, "cat"),
        "pack/dog/2.jpg": (None, "dog"),
    }
    memory.rm("/sources-test", recursive=True)


def test_the_imagenet_tars_give_a_class_per_inner_tar(folder: Path) -> None:
    inner = {f"n0{n}.tar": tar_of({f"n0{n}_{i}.JPEG": jpeg(i) for i in range(3)}) for n in range(2)}
    put(folder / "ILSVRC2012_img_train.tar", tar_of(inner))
    put(folder / "ILSVRC2012_img_val.tar", tar_of({"ILSVRC2012_val_00000002.JPEG": jpeg(9)}))
    assert [piece.bytes for piece in found(folder)[:2]] == [len(data) for data in inner.values()]
    assert placed(folder) == {
        **{
            f"ILSVRC2012_img_train/n0{n}/n0{n}_{i}.JPEG": ("train", f"n0{n}")
            for n in range(2)
            for i in range(3)
        },
        "ILSVRC2012_img_val/ILSVRC2012_val_00000002.JPEG": ("val", None),
    }


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_inner_tars_of_one_stem_keep_their_images_apart(folder: Path, suffix: str) -> None:
    names = ("a/part.tar", "./b/part.tar", "c.001.tar", "c.002.tar")
    outer = tar_of({name: tar_of({"1.jpg": jpeg(n)}) for n, name in enumerate(names)})
    put(folder / f"o{suffix}", outer if suffix == ".tar" else gzip.compress(outer))
    assert placed(folder / f"o{suffix}") == {
        "a/part/1.jpg": (None, "part"),
        "b/part/1.jpg": (None, "part"),
        "c.001/1.jpg": (None, "c"),
        "c.002/1.jpg": (None, "c"),
    }


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_samples_of_one_name_in_two_inner_tars_do_not_share_a_label(
    folder: Path, suffix: str
) -> None:
    inner = [{"1.jpg": jpeg(n), **({"1.cls": b"cat"} if n == 0 else {})} for n in range(2)]
    outer = tar_of({f"{n}.tar": tar_of(files) for n, files in enumerate(inner)})
    put(folder / f"o{suffix}", outer if suffix == ".tar" else gzip.compress(outer))
    assert placed(folder / f"o{suffix}") == {"0/1.jpg": (None, "cat"), "1/1.jpg": (None, "1")}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_inner_tar_that_is_hidden_a_link_or_outside_is_not_opened(
    folder: Path, suffix: str
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("../out.tar", "._n01.tar", "n01.tar"):
            add_member(archive, name, tar_of({"1.jpg": jpeg(1)}))
        add_member(archive, "link.tar", type=tarfile.SYMTYPE, linkname="n01.tar")
    outer = data.getvalue()
    put(folder / f"o{suffix}", outer if suffix == ".tar" else gzip.compress(outer))
    by_key = pictures(folder / f"o{suffix}")
    assert {key: m.fault and m.fault.kind for key, m in by_key.items()} == {
        "../out.tar": "refused",
        "n01/1.jpg": None,
        "link.tar": "refused",
    }


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_archive_gives_its_images_with_long_names_and_all(
    folder: Path, suffix: str, form: int
) -> None:
    long = "d" * 90 + "/" + "p" * 120 + ".jpg" if form != tarfile.USTAR_FORMAT else "d/p.jpg"
    files = {"./photos/train/cat/1.jpg": jpeg(1), long: jpeg(2), "photos/notes.txt": b"no"}
    data = tar_of(files, form)
    put(folder / f"a{suffix}", data if suffix == ".tar" else gzip.compress(data))
    by_key = pictures(folder / f"a{suffix}")
    assert set(by_key) == {"photos/train/cat/1.jpg", long}
    assert by_key["photos/train/cat/1.jpg"].data == jpeg(1)
    assert by_key["photos/train/cat/1.jpg"][2:4] == ("train", "cat")


@pytest.mark.parametrize("range_bytes", [1, 4096, 1 << 30])
def test_a_tar_cut_into_ranges_gives_each_member_once(
    folder: Path, range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    files = {f"{'long/' * 30}{n}.jpg": jpeg(n) for n in range(20)}
    put(folder / "a.tar", tar_of(files, tarfile.PAX_FORMAT))
    by_key = pictures(folder / "a.tar")
    assert {key: member.data for key, member in by_key.items()} == files
    assert (len(found(folder / "a.tar")) > 1) == (range_bytes < 1 << 30)


def test_webdataset_shards_take_the_class_from_the_sample(folder: Path) -> None:
    for shard in range(3):
        files = {
            f"{shard}{n}.{kind}": data
            for n in range(2)
            for kind, data in (("cls", str(n).encode()), ("jpg", jpeg(n)), ("json", b"{}"))
        }
        put(folder / f"s-{shard:03}.tar", tar_of(files))
    expected = {f"s-{s:03}/{s}{n}.jpg": (None, str(n)) for s in range(3) for n in range(2)}
    assert placed(folder) == expected
    assert placed(f"{folder}/s-{{000..002}}.tar") == expected
    with pytest.raises(UserError, match="rising range"):
        found(f"{folder}/s-{{2..0}}.tar")


@pytest.mark.parametrize("range_bytes", [1, 2000, 4096, 10_000])
def test_a_tar_is_never_cut_inside_a_sample(
    folder: Path, range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    files = {
        f"./d/{n}.{kind}": data
        for n in range(20)
        for kind, data in (("left.jpg", jpeg(n)), ("right.jpg", jpeg(n)), ("cls", b"%d" % n))
    }
    files = {
        place: data for name, data in files.items() for place, data in apple_double(name, data)
    }
    put(folder / "a.tar", tar_of(files))
    assert len(found(folder)) > 3
    assert placed(folder / "a.tar") == {
        f"d/{n}.{side}.jpg": (None, str(n)) for n in range(20) for side in ("left", "right")
    }


def apple_double(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as macOS archives it: behind a hidden one."""
    folder, _, file = name.rpartition("/")
    yield f"{folder}/._{file}", b"x"
    yield name, data


def test_a_stem_that_all_files_share_is_no_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1)
    monkeypatch.setattr(ranges, "SAMPLE_BYTES", 4096)
    put(folder / "a.tar", tar_of({f"frame.{n}.jpg": jpeg(n) for n in range(20)}))
    assert len(found(folder)) > 3
    assert len(pictures(folder)) == 20


def hugging_face_table(labels: list[int]) -> pa.Table:
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    rows = [{"bytes": jpeg(n), "path": "same.jpg"} for n in range(len(labels))]
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    return table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})


def test_hugging_face_parquet_gives_named_classes_and_refuses_labels_out_of_range(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1)
    path = folder / "validation-00000-of-00001.parquet"
    pq.write_table(hugging_face_table([0, 1, -1, 7, 1]), path, row_group_size=2)
    by_key = pictures(folder)
    stem = path.stem
    assert len(found(folder)) == 3
    assert by_key[f"{stem}/0000001"][1:4] == (jpeg(1), "val", "dog")
    assert by_key[f"{stem}/0000002"].class_name is None
    fault = by_key[f"{stem}/0000003"].fault
    assert fault is not None and fault.kind == "missing_label"


def test_a_float_is_a_label_where_it_is_whole_and_nothing_is_no_label(folder: Path) -> None:
    floats = pa.array([1.0, float("nan"), None, -1.0, 0.0])
    texts = pa.array(["cat", "", None, "-1", "dog"])
    for name, labels, expected in (
        ("a", floats, ["1", None, None, None, "0"]),
        ("b", texts, ["cat", None, None, "-1", "dog"]),
    ):
        images = pa.array([jpeg(n) for n in range(5)])
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{name}.parquet")
        uris = [f"{n}.jpg" for n in range(5)]
        pq.write_table(pa.table({"uri": uris, "label": labels}), folder / f"{name}-list.parquet")
        for source in (folder / f"{name}.parquet", folder / f"{name}-list.parquet"):
            everything = [member for piece in found(source) for member in members(piece)]
            assert [member.class_name for member in everything] == expected
    table = hugging_face_table([0, 1])
    table = table.set_column(1, "label", pa.array([1.0, None]))
    pq.write_table(table, folder / "c.parquet")
    assert [m.class_name for m in pictures(folder / "c.parquet").values()] == ["dog", None]


@pytest.mark.parametrize("label", [0.5, float("inf"), "x" * 2000])
def test_what_is_no_label_is_set_aside_in_a_table_of_images_and_refused_in_a_list(
    folder: Path, label: float | str
) -> None:
    labels = pa.array([None, label])
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1)], "label": labels}), folder / "a.parquet")
    good, bad = pictures(folder / "a.parquet").values()
    assert good.fault is None and bad.fault is not None and bad.fault.kind == "missing_label"
    pq.write_table(pa.table({"uri": ["0.jpg", "1.jpg"], "label": labels}), folder / "b.parquet")
    shown = "'x{50}'" if isinstance(label, str) else str(label)
    with pytest.raises(UserError, match=f"row 2 has the label {shown}.*, which is no class"):
        found(folder / "b.parquet")


@pytest.mark.parametrize("column", ["label", "uri"])
def test_text_in_parquet_that_is_not_utf8_is_refused_by_the_name_of_the_file(
    folder: Path, column: str
) -> None:
    damaged = pa.array([b"caf\xe9"]).view(pa.string())
    if column == "label":
        pq.write_table(pa.table({"image": [jpeg(0)], "label": damaged}), folder / "a.parquet")
        with pytest.raises(UserError, match=r"a.parquet', which is damaged: 'utf-8' codec"):
            pictures(folder / "a.parquet")
    uris = damaged if column == "uri" else pa.array(["0.jpg"])
    pq.write_table(pa.table({"uri": uris, "label": damaged}), folder / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet', which is damaged: 'utf-8' codec"):
        found(folder / "b.parquet")


def test_a_binary_column_of_any_name_will_do_and_a_null_is_counted(folder: Path) -> None:
    table = pa.table({"n": [1, 2], "photo": pa.array([jpeg(0), None], pa.large_binary())})
    pq.write_table(table, folder / "a.parquet")
    beside = Beside.empty()
    (only,) = (member for piece in found(folder) for member in members(piece, beside))
    assert only.data == jpeg(0)
    assert beside.others == {"cell of an image column that is empty": 1}


def test_parquet_without_images_or_damaged_is_refused_by_name(folder: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), folder / "a.parquet")
    with pytest.raises(UserError, match=r"no column of images.*n \(int64\)"):
        found(folder)
    put(folder / "a.parquet", b"PAR1" + b"junk" * 20)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        found(folder)


def write_repeated(path: Path, column: str, value: bytes | str, rows: int) -> None:
    """One value for all rows, stored once; read back as plain values."""
    kind = pa.binary() if isinstance(value, bytes) else pa.string()
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))
    table = pa.table({column: one})
    with pq.ParquetWriter(
        path, table.schema, compression="zstd", store_schema=False, write_statistics=False,
        dictionary_pagesize_limit=1 << 30,
    ) as writer:  # fmt: skip
        writer.write_table(table)


def test_one_large_value_for_all_rows_is_not_copied_for_each_in_memory(folder: Path) -> None:
    write_repeated(folder / "a.parquet", "image", bytes(16 << 20), 200)
    assert (folder / "a.parquet").stat().st_size < 10_000
    before, most = pa.total_allocated_bytes(), 0
    for piece in found(folder):
        for number, member in enumerate(members(piece)):
            most = max(most, pa.total_allocated_bytes() - before)
            assert member.data is not None and len(member.data) == 16 << 20
            if number == 70:
                break
    assert most < 8 * (16 << 20)


def test_a_list_of_one_long_uri_for_all_rows_is_refused_and_not_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repeated(folder / "a.parquet", "uri", "x" * (1 << 20), 500)
    check, held = tables._check_length, []

    def measured(uri: str, row: int, length: int) -> None:
        held.append(pa.total_allocated_bytes() - before)
        check(uri, row, length)

    monkeypatch.setattr(tables, "_check_length", measured)
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"row 1 is longer than 16384 bytes"):
        found(folder / "a.parquet")
    assert len(held) == 1 and held[0] < 64 << 20


def test_a_line_that_does_not_end_is_refused(folder: Path) -> None:
    put(folder / "a.txt", b"1.jpg cat\n" + b"x" * 100_000)
    with pytest.raises(UserError, match=r"line 2 is longer than 16384 bytes"):
        found(folder / "a.txt")


def test_a_cell_above_the_limit_and_a_label_without_end_are_set_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "MAX_FILE_BYTES", 1000)
    cells = [{"bytes": bytes(1001), "path": "a"}, {"bytes": b"1", "path": "b"}, None]
    table = pa.table({"image": cells, "label": ["cat", "x" * 2000, "cat"]})
    pq.write_table(table, folder / "a.parquet")
    faults = [member.fault for member in pictures(folder).values()]
    assert [fault and fault.kind for fault in faults] == [
        "too_large",
        "missing_label",
    ]
    assert "1001 bytes; at most 1000" in str(faults[0]) and len(str(faults[1])) < 200


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.marker, "code ran"))


@pytest.mark.parametrize(
    "extension",
    [
        "arrow.py_extension_type",
        "ray.data.arrow_tensor",
        "ray.data.arrow_tensor_v2",
        "ray.data.arrow_pickled_object",
        "ray.data.arrow_variable_shaped_tensor",
    ],
)
def test_parquet_with_pickled_metadata_runs_no_code(folder: Path, extension: str) -> None:
    marker = folder / "marker"
    payload = pickle.dumps(Hostile(marker))
    pickle.loads(payload)
    assert marker.exists(), "the payload works"
    marker.unlink()
    kind = pa.list_(pa.uint8()) if "tensor" in extension else pa.binary()
    field = pa.field("image", kind).with_metadata(
        {"ARROW:extension:name": extension, "ARROW:extension:metadata": payload}
    )
    cell: Any = [1, 2] if "tensor" in extension else jpeg(1)
    table = pa.table({"image": pa.array([cell], kind)}, schema=pa.schema([field]))
    pq.write_table(table, folder / "a.parquet")
    import ray.data  # noqa: F401  registers Ray's extension types, as in a task

    try:
        pictures(folder)
    except UserError as refusal:
        assert "source holds" in str(refusal)
    assert not marker.exists()


def test_lists_name_images_by_uri_with_labels(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "p" / "1.jpg", jpeg(1))
    put(folder / "2 b.jpg", jpeg(2))
    for name, text in (
        ("a.txt", f"# comment\n{tmp_path}/p/1.jpg cat\n\n"),
        ("b.csv", "url,label\n2 b.jpg,dog\n"),
        ("c.tsv", "2 b.jpg\tdog\n"),
    ):
        put(folder / name, text.encode())
    absolute = f"{tmp_path}/p/1.jpg"
    assert placed(folder / "a.txt") == {absolute: (None, "cat")}
    assert placed(folder / "b.csv") == placed(folder / "c.tsv") == {"2 b.jpg": (None, "dog")}
    assert pictures(folder / "a.txt")[absolute].data == jpeg(1)
    table = pa.table({"url": ["2 b.jpg"], "class": ["dog"]})
    pq.write_table(table, folder / "d.parquet")
    assert placed(folder / "d.parquet") == {"2 b.jpg": (None, "dog")}
    put(folder / "e.txt", b"\xff\xfe\x00")
    with pytest.raises(UserError, match="line 1 is not UTF-8"):
        found(folder / "e.txt")


def test_a_list_may_name_images_on_the_web(folder: Path, tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    put(tmp_path / "web" / "1.jpg", jpeg(1))
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{web.server_port}"
        put(folder / "list.txt", f"{address}/1.jpg cat\n{address}/gone.jpg dog\n".encode())
        by_key = pictures(folder / "list.txt")
        web.shutdown()
        thread.join()
    assert by_key[f"{address}/1.jpg"].data == jpeg(1)
    fault = by_key[f"{address}/gone.jpg"].fault
    assert fault is not None and fault.kind == "unreadable"


def test_a_web_server_that_is_away_or_refuses_is_not_taken_for_one_without_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404 if "gone" in self.path else 403)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{web.server_port}"
        assert storage.exists(f"{address}/gone.tar") is False
        with pytest.raises(UserError, match=r"looking for http.*a.tar: 403"):
            storage.exists(f"{address}/a.tar")
        web.shutdown()
        thread.join()
    with pytest.raises(OSError, match="still failing after 6 tries: Cannot connect"):
        storage.exists(f"{address}/a.tar")


def test_a_web_server_that_asks_for_patience_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([408, 429, 503])

    class Busy(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = next(refusals, None)
            if refused is not None:
                self.send_error(refused)
                return
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        assert storage.read_bytes(f"http://127.0.0.1:{web.server_port}/a.jpg") == b"content"
        web.shutdown()
        thread.join()


def test_label_lists_of_imagenet_and_of_caffe_say_the_same(tmp_path: Path) -> None:
    put(tmp_path / "truth.txt", b"2\n1\n3\n")
    put(tmp_path / "val.txt", b"x_00000001.JPEG 1\nx_00000002.JPEG 0\nx_00000003.JPEG 2\n")
    put(tmp_path / "kaggle.csv", b"ImageId,PredictionString\nx_00000002,n1 1 2 3 4\n")
    put(tmp_path / "classes.txt", b"n1 tench, fish\nn2 shark\nn3 dog\n")
    classes = str(tmp_path / "classes.txt")
    for name in ("truth.txt", "val.txt"):
        labels = read_labels(str(tmp_path / name), classes)
        keys = [f"val/x_0000000{n}.JPEG" for n in (1, 2, 3)]
        assert [labels.of(key) for key in keys] == ["n2", "n1", "n3"]
        assert labels.of("val/x_00000009.JPEG") is None
    assert read_labels(str(tmp_path / "kaggle.csv"), None).of("val/x_00000002.JPEG") == "n1"
    put(tmp_path / "spaces.txt", b"ice cream\ncheese cake\nn1 motorway\n")
    spaces = read_labels(str(tmp_path / "truth.txt"), str(tmp_path / "spaces.txt"))
    assert spaces.by_number == ("cheese cake", "ice cream", "n1 motorway")
    put(tmp_path / "bad.txt", b"a 1\nb 9\n")
    with pytest.raises(UserError, match="'9' is no place in class_list, which has 3"):
        read_labels(str(tmp_path / "bad.txt"), classes)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("0.jpg,golden retriever\n", "golden retriever"),
        ("0.jpg\ttench, Tinca tinca\n", "tench, Tinca tinca"),
        ("0.jpg, golden retriever ,0.9\n", "golden retriever"),
        ("0.jpg cat\n", "cat"),
        ("\ufeff0.jpg,cat\n", "cat"),
        ("\ufefffilename,label\n0.jpg,cat\n", "cat"),
    ],
)
def test_a_line_of_labels_and_of_images_is_split_alike_and_a_class_keeps_its_spaces(
    folder: Path, text: str, label: str
) -> None:
    put(folder / "list.csv", text.encode())
    assert read_labels(str(folder / "list.csv"), None).by_name == {"0.jpg": label}
    assert placed(folder / "list.csv") == {"0.jpg": (None, label)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ImageId,PredictionString\n", "a header and no label"),
        ("0.jpg,1\n1.jpg,\n", "each line must be .* that of '1.jpg' is not"),
        ("0.jpg 1\n1.jpg\n", "each line must be .* that of '1.jpg' is not"),
    ],
)
@pytest.mark.parametrize("with_classes", [False, True])
def test_a_list_of_labels_that_lacks_some_is_refused(
    tmp_path: Path, text: str, words: str, with_classes: bool
) -> None:
    put(tmp_path / "labels.csv", text.encode())
    put(tmp_path / "classes.txt", b"cat\ndog\n")
    classes = str(tmp_path / "classes.txt") if with_classes else None
    with pytest.raises(UserError, match=words):
        read_labels(str(tmp_path / "labels.csv"), classes)


# Archives that mean harm.


def special(**kinds: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        add_member(archive, "before.jpg", jpeg(1))
        for name, kind in kinds.items():
            add_member(archive, name, type=kind, linkname="/etc/passwd")
        add_member(archive, "after.jpg", jpeg(2))
    return out.getvalue()


def test_links_devices_and_paths_that_lead_outside_are_refused_and_nothing_is_written(
    folder: Path,
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        add_member(archive, "good.jpg", jpeg(1))
        for name in ("../../escape.jpg", "/tmp/absolute.jpg", "a/../../b.jpg"):
            add_member(archive, name, jpeg(2))
        for name, kind in (
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("c", tarfile.CHRTYPE),
            ("b", tarfile.BLKTYPE),
            ("f", tarfile.FIFOTYPE),
        ):
            add_member(archive, name, type=kind, linkname="/etc/passwd")
    put(folder / "a.tar", data.getvalue())
    before = sorted(folder.parent.rglob("*"))
    by_key = pictures(folder / "a.tar")
    assert sorted(folder.parent.rglob("*")) == before
    kinds = {key: member.fault and member.fault.kind for key, member in by_key.items()}
    assert kinds.pop("good.jpg") is kinds.pop("tmp/absolute.jpg") is None
    assert set(kinds) == {"../../escape.jpg", "a/../../b.jpg", "s.jpg", "h.jpg"}
    assert set(kinds.values()) == {"refused"}
    assert all(by_key[key].data is None for key in kinds)
    assert told(folder / "a.tar") == {"device": 2, "fifo": 1}


@pytest.mark.parametrize("cut", [10, 513, 700, 1500])
def test_an_archive_cut_short_is_reported_and_what_came_before_is_kept(
    folder: Path, cut: int
) -> None:
    data = tar_of({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}).rstrip(b"\0")
    put(folder / "a.tar", data[:-cut])
    by_key = pictures(folder / "a.tar")
    kinds = Counter(member.fault.kind if member.fault else "good" for member in by_key.values())
    assert kinds["broken_archive"] == 1
    assert all(member.data in (None, jpeg(1)) for member in by_key.values())


def test_an_empty_file_is_no_archive(folder: Path) -> None:
    for name, data in (
        ("a.tar", b""),
        ("b.tar.gz", b""),
        ("c.tgz", gzip.compress(b"")),
        ("d.tar", tar_of({"x.tar": b"", "y.tar": tar_of({"1.jpg": jpeg(1)})})),
        ("e.tar", tar_of({})),
    ):
        put(folder / name, data)
    kinds = {key: m.fault and m.fault.kind for key, m in pictures(folder).items()}
    assert kinds.pop("d/y/1.jpg") is None
    assert {key.split("@")[0] for key in kinds} == {"a/", "b/", "c/", "d/x/"}
    assert set(kinds.values()) == {"broken_archive"}


def test_a_cut_inner_archive_ends_alone(folder: Path) -> None:
    whole = tar_of({"1.jpg": jpeg(1)})
    cut = tar_of({"2.jpg": jpeg(2), "3.jpg": jpeg(3)})[: 1024 + tars.padded_size(len(jpeg(2))) + 99]
    for name, data in (
        ("a.tar", tar_of({"x.tar": cut, "y.tar": whole})),
        ("b.tar.gz", gzip.compress(tar_of({"x.tar": cut, "y.tar": whole}))),
    ):
        put(folder / name, data)
        by_key = pictures(folder / name)
        assert by_key["y/1.jpg"].data == jpeg(1)
        assert by_key["x/2.jpg"].data == jpeg(2)
        faults = [member.fault.kind for member in by_key.values() if member.fault]
        assert faults == ["broken_archive"]


def test_a_compressed_archive_that_is_cut_or_flipped_is_reported(folder: Path) -> None:
    data = gzip.compress(tar_of({f"{n}.jpg": jpeg(n) for n in range(20)}))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    for bad in (data[: len(data) // 2], bytes(flipped), data[:12]):
        put(folder / "a.tar.gz", bad)
        kinds = [m.fault.kind for m in pictures(folder / "a.tar.gz").values() if m.fault]
        assert kinds == ["broken_archive"]


def absurd(field: slice, value: bytes) -> bytes:
    """A tar whose first header claims something absurd under a right checksum."""
    data = bytearray(tar_of({"a.jpg": jpeg(1)}))
    data[field] = value.ljust(field.stop - field.start, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        absurd(slice(124, 136), b"77777777777"),  # 8 GiB
        absurd(slice(124, 136), b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),  # 8 EiB
        absurd(slice(124, 136), b"\xff" * 12),  # negative
        absurd(slice(124, 136), b"-0000000005"),  # a sign would mean: all that follows
        absurd(slice(124, 136), b"+0000000005"),
        absurd(slice(124, 136), b"0_000_00005"),
        absurd(slice(124, 136), b"nonsense"),
        absurd(slice(156, 157), b"x"),  # a pax header that is a JPEG
        b"not a tar at all" * 100,
    ],
    ids=[
        "8 GiB",
        "8 EiB",
        "negative",
        "minus",
        "plus",
        "underscore",
        "no number",
        "pax of junk",
        "no tar",
    ],
)
def test_absurd_headers_are_reported_without_reading_what_they_claim(
    folder: Path, data: bytes
) -> None:
    put(folder / "a.tar", data)
    kinds = {m.fault.kind for m in pictures(folder / "a.tar").values() if m.fault}
    assert "broken_archive" in kinds
    assert kinds <= {"broken_archive", "too_large"}


class Endless(io.RawIOBase):
    """A header, then zeros for ever; nobody may ask for all of them."""

    taken = 0

    def __init__(self, head: bytes) -> None:
        self.head = head

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        self.taken += size
        data, self.head = self.head[:size], self.head[size:]
        return data + bytes(size - len(data))


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
def test_a_negative_size_does_not_mean_all_that_follows(kind: bytes) -> None:
    header = bytearray(absurd(slice(124, 136), b"-0000000005")[:512])
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    stream = Endless(bytes(header))
    with pytest.raises(tars.BrokenArchive, match="holds no number"):
        for entry in tars.entries(stream):  # type: ignore[arg-type]
            entry.content.read()
    assert stream.taken < 1 << 20


def test_a_name_of_a_gigabyte_is_refused_before_it_is_read() -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    stream = Endless(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(tars.BrokenArchive, match="1073741824 bytes is claimed"):
        list(tars.entries(stream))  # type: ignore[arg-type]
    assert stream.taken < 1 << 20


def test_an_image_above_the_limit_is_never_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "MAX_FILE_BYTES", 1000)
    put(folder / "cat" / "big.jpg", bytes(1001))
    put(folder / "a.tar", tar_of({"big.jpg": bytes(1001), "small.jpg": b"1"}))
    kinds = {key: m.fault and m.fault.kind for key, m in pictures(folder).items()}
    assert kinds == {"cat/big.jpg": "too_large", "a/big.jpg": "too_large", "a/small.jpg": None}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_that_no_file_system_holds_is_refused_and_what_follows_is_read(
    folder: Path, form: int
) -> None:
    long = f"{'a' * 5000}.jpg"
    put(folder / "a.tar", tar_of({long: jpeg(1), "b.jpg": jpeg(2)}, form))
    refused, good = sorted(pictures(folder / "a.tar").values(), key=lambda m: m.fault is None)
    assert refused.fault and refused.fault.kind == "refused" and len(refused.key) < 300
    assert "5004 characters" in str(refused.fault)
    assert good.data == jpeg(2)


def test_many_pax_records_are_read_once_each() -> None:
    comments = b"".join(b"13 comment=%d\n" % (n % 10) for n in range(1000))
    assert len(comments) == 13_000
    said = tars._pax(comments + b"12 path=a.j\n" + b"11 size=77\n", tars._Said())
    assert (said.name, said.size) == ("a.j", 77)
    with pytest.raises(tars.BrokenArchive, match="pax header is damaged"):
        tars._pax(comments + b"0 path=a\n", tars._Said())


@pytest.mark.slow
def test_twenty_thousand_members_are_read_in_bounded_memory(folder: Path) -> None:
    import tracemalloc

    one = tar_of({"a.txt": b""}).rstrip(b"\0")[:512].ljust(512, b"\0")
    with (folder / "a.tar").open("wb") as out:
        for _ in range(20):
            out.write(one * 1000)
        out.write(tar_of({"last.jpg": jpeg(1)}))
    tracemalloc.start()
    assert set(pictures(folder / "a.tar")) == {"last.jpg"}
    assert tracemalloc.get_traced_memory()[1] < 20 << 20

"""Archives as people have them: zip, every compression, joined, sparse, linked; labels in them."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from dataset_helpers import prepared, rows_of
from helpers import jpeg, tar_of

from pipelines.errors import UserError
from pipelines.prepare.sources import listing, ranges, samples, streams, tars, zips
from pipelines.prepare.sources.member import Beside, Member
from pipelines.prepare.sources.readers import members
from pipelines.prepare.sources.samples import File, Labels, with_labels


def read(source: Path | str) -> tuple[dict[str, Member], Counter[str]]:
    """All members by key, and what was not read."""
    beside = Beside.empty()
    found: dict[str, Member] = {}
    for piece in listing.pieces(str(source), beside.others):
        for member in members(piece, beside):
            assert member.key not in found
            found[member.key] = member
    return found, beside.others


def classes(source: Path) -> dict[str, str | None]:
    return {key: member.class_name for key, member in sorted(read(source)[0].items())}


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tbz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".txz": lzma.compress,
    ".tar.zst": zstd,
}
TREE = {f"{kind}/{n}.jpg": jpeg(n) for n, kind in enumerate(["cat", "dog"] * 4)}


@pytest.mark.parametrize("suffix", [*PACKED, ".zip"])
def test_every_archive_of_a_tree_gives_what_the_tree_gives(suffix: str, tmp_path: Path) -> None:
    data = zip_of(TREE) if suffix == ".zip" else PACKED[suffix](tar_of(TREE))
    (tmp_path / f"a{suffix}").write_bytes(data)
    for name, image in TREE.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(image)
    found, others = read(tmp_path / f"a{suffix}")
    on_disk, _ = read(tmp_path / "tree")
    assert {key: (m.split, m.class_name, m.data) for key, m in found.items()} == {
        key: (m.split, m.class_name, m.data) for key, m in on_disk.items()
    }
    assert others == Counter()


@pytest.mark.parametrize("suffix", PACKED)
def test_joined_archives_are_read_to_the_last_one(suffix: str, tmp_path: Path) -> None:
    first, second = (tar_of({f"{name}/{n}.jpg": jpeg(n) for n in range(3)}) for name in "ab")
    pack = PACKED[suffix]
    for data in (pack(first) + pack(second), pack(first + bytes(5120) + second)):
        (tmp_path / f"j{suffix}").write_bytes(data)
        found, others = read(tmp_path / f"j{suffix}")
        assert sorted(found) == [f"{name}/{n}.jpg" for name in "ab" for n in range(3)]
        assert all(member.data for member in found.values()) and others == Counter()


@pytest.mark.parametrize("suffix", PACKED)
def test_bytes_behind_an_archive_are_told_and_a_cut_stream_is_broken(
    suffix: str, tmp_path: Path
) -> None:
    data = PACKED[suffix](tar_of(TREE))
    (tmp_path / f"a{suffix}").write_bytes(data + b"neither zero nor an archive" * 30)
    found, others = read(tmp_path / f"a{suffix}")
    assert len(found) == 8 and others == {tars.BEHIND: 1}
    if suffix != ".tar":
        for cut in (len(data) // 3, 40):
            (tmp_path / f"a{suffix}").write_bytes(data[:cut])
            faults = [m.fault.kind for m in read(tmp_path / f"a{suffix}")[0].values() if m.fault]
            assert faults == ["broken_archive"]


def test_a_storage_that_fails_is_no_damage_of_the_archive() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100:
                raise ConnectionError("the storage went away")
            return super().read(size if size is not None and 0 <= size < 50 else 50)

    noise = {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}
    for suffix in (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"):
        stream = streams.plain(Failing(PACKED[suffix](tar_of(noise))))
        with pytest.raises(ConnectionError):
            for entry in tars.entries(stream):
                entry.content.read()


def test_an_absolute_name_loses_its_slash_as_tar_unpacks_it(tmp_path: Path) -> None:
    files = {f"/data/train/cat/{n}.jpg": jpeg(n) for n in range(3)}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    assert sorted(read(tmp_path / "a.tar")[0]) == [f"data/train/cat/{n}.jpg" for n in range(3)]


@pytest.mark.parametrize("form", ["gnu", "pax", "0.0", "0.1"])
def test_sparse_members_have_their_zeros(form: str, tmp_path: Path) -> None:
    expected = {}
    for number in range(3):
        data = jpeg(number) + (bytes(300_000) + b"end") * (8 * number)
        expected[f"{number}.jpg"] = data
        with (tmp_path / f"{number}.jpg").open("wb") as file:
            for at in range(0, len(data), 4096):
                block = data[at : at + 4096]
                file.seek(at + len(block) - 1) if not any(block) else file.write(block)
                if not any(block):
                    file.write(b"\0") if at + 4096 >= len(data) else file.seek(at + 4096)
    version = ["--format=pax", f"--sparse-version={form}"] if "." in form else [f"--format={form}"]
    command = [
        "tar",
        "-S",
        *version,
        "-C",
        str(tmp_path),
        "-cf",
        str(tmp_path / "a.tar"),
        *expected,
    ]
    subprocess.run(command, check=True)
    found, _ = read(tmp_path / "a.tar")
    assert {key: member.data for key, member in found.items()} == expected


def test_a_damaged_sparse_map_breaks_the_archive_and_no_more() -> None:
    for text in (b"2\n0\n9\n5\n9\n", b"1\n0\n99999\n", b"1\nx\n1\n", b"9999999\n"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("a.jpg")
            info.pax_headers = {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": "a.jpg",
                "GNU.sparse.realsize": "100",
            }
            body = text.ljust(512, b"\0") + bytes(18)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        with pytest.raises(tars.BrokenArchive):
            for entry in tars.entries(io.BytesIO(out.getvalue())):
                entry.content.read()


def linked(suffix: str, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("cat", "dog"):
        (tree / name).mkdir(parents=True)
    for number in range(4):
        (tree / "cat" / f"{number}.jpg").write_bytes(jpeg(number))
        (tree / "dog" / f"{number}.jpg").hardlink_to(tree / "cat" / f"{number}.jpg")
    plain = tmp_path / "plain.tar"
    command = ["tar", "-C", str(tree), "-cf", str(plain), "--sort=name", "."]
    subprocess.run(command, check=True)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKED[suffix](plain.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("range_bytes", [1, 1 << 26])
def test_a_hard_link_is_a_copy(
    suffix: str, range_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    found, _ = read(linked(suffix, tmp_path))
    assert {key: (m.class_name, m.data) for key, m in found.items()} == {
        f"{kind}/{n}.jpg": (kind, jpeg(n)) for kind in ("cat", "dog") for n in range(4)
    }


def test_what_is_not_read_in_an_archive_is_told_by_kind(tmp_path: Path) -> None:
    files = {"p/1.jpg": jpeg(1), "p/.hidden/2.jpg": jpeg(2), "__MACOSX/p/._1.jpg": b"x"}
    files |= {f"p/{n}{s}": b"x" for n, s in enumerate([".heic", ".jxl", ".jp2", ".heic", ".zip"])}
    files |= {"p/README": b"x", "p/3.JPG_large": b"x", "p/4.seg.png": b"x", "p/5.mask.png": b"x"}
    for name, data in (("a.tar", tar_of(files)), ("a.zip", zip_of(files))):
        (tmp_path / name).write_bytes(data)
        found, others = read(tmp_path / name)
        assert list(found) == ["p/1.jpg"]
        assert others == {
            ".heic": 2,
            ".jxl": 1,
            ".jp2": 1,
            ".zip": 1,
            ".jpg_large": 1,
            ".seg.png": 1,
            ".mask.png": 1,
            "file without a suffix": 1,
            "image with a hidden name": 2,
        }


def write_samples(path: Path, names: list[str]) -> Path:
    """A shard: of `stem.cls` the class is the stem's last letter or digit; images are images."""
    files = {
        name: name.rpartition(".")[0][-1].encode() if name.endswith(".cls") else jpeg(at)
        for at, name in enumerate(names)
    }
    path.write_bytes(zip_of(files) if path.suffix == ".zip" else tar_of(files))
    return path


@pytest.mark.parametrize("order", ["labels first", "images first", "image, label", "label, image"])
@pytest.mark.parametrize("stem", ["{:04}", "frame.{:03}", "w/2023-01-01T10.30.{:02}"])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize("range_bytes", [1, 1 << 26])
def test_labels_are_those_of_the_same_name_in_any_order(
    order: str,
    stem: str,
    suffix: str,
    range_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    stems = [stem.format(n) for n in range(40)]
    images, labels = [f"{s}.jpg" for s in stems], [f"{s}.cls" for s in stems]
    pairs = {"image, label": (images, labels), "label, image": (labels, images)}
    if order in pairs:
        names = [name for pair in zip(*pairs[order], strict=True) for name in pair]
    else:
        names = [*labels, *images] if order == "labels first" else [*images, *labels]
    path = write_samples(tmp_path / f"a{suffix}", names)
    assert classes(path) == {f"{s}.jpg": s[-1] for s in stems}


def test_labels_behind_their_images_in_a_stream_are_refused_and_never_lost(tmp_path: Path) -> None:
    names = [f"{n:04}.jpg" for n in range(30)] + [f"{n:04}.cls" for n in range(30)]
    data = write_samples(tmp_path / "a.tar", names).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    fsspec.filesystem("memory").pipe("/late/a.tar", data)
    for source in (tmp_path / "a.tar.gz", "memory://late/a.tar"):
        with pytest.raises(UserError, match=r"far behind their images.*'0000' \(30 in this"):
            read(source)
    fsspec.filesystem("memory").rm("/late", recursive=True)


def test_a_job_reads_such_a_stream_again_and_counts_what_is_not_read_once(
    serially: None, tmp_path: Path
) -> None:
    files = {f"{n:04}.jpg": jpeg(n) for n in range(24)} | {"a.txt": b"caption"}
    files |= {f"{n:04}.cls": b"%d" % (n % 2) for n in range(24)}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(files)))
    manifest = prepared(tmp_path / "a.tar.gz", tmp_path / "d")
    found = {key: label for key, (_, label) in rows_of(tmp_path / "d", "label").items()}
    assert found == {f"{n:04}.jpg": n % 2 for n in range(24)}
    assert (manifest.listed, manifest.not_read) == (24, {".txt": 1})


def test_a_sample_of_several_images_shares_its_label_and_its_label_map_is_none(
    tmp_path: Path,
) -> None:
    names = [f"{n}{end}" for n in range(20) for end in (".cls", ".jpg", ".left.jpg", ".seg.png")]
    found, others = read(write_samples(tmp_path / "a.tar", names))
    assert {key: m.class_name for key, m in found.items()} == {
        f"{n}{end}": str(n)[-1] for n in range(20) for end in (".jpg", ".left.jpg")
    }
    assert others.total() == 20


LABELS: dict[tuple[str, bytes], str | None] = {
    ("cls", b"3\n"): "3",
    ("cls", b"3\r\n"): "3",
    ("cls", b"003"): "3",
    ("CLS", b"3"): "3",
    ("cls", b'"cat"'): "cat",
    ("cls", b"cat\0"): "cat",
    ("cls", b"n01440764"): "n01440764",
    ("cls", b"two words"): "two words",
    ("cls.txt", b"3"): "3",
    ("label", b"3"): "3",
    ("class", b"3"): "3",
    ("json", b'{"label": 3, "url": "x"}'): "3",
    ("json", b'{"class_name": "cat"}'): "cat",
    ("cls", b""): None,
    ("cls", b"-1"): None,
    ("cls", b"\xff\xfe"): None,
    ("cls", b"a\nb"): None,
    ("cls", b"x" * 2000): None,
    ("json", b'{"caption": "a cat"}'): None,
    ("json", b"[1, 2]"): None,
    ("json", b"{" * 3000): None,
    ("txt", b"cat"): None,
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_file_is_read_as_it_is_meant_or_told(
    kind: tuple[str, bytes], tmp_path: Path
) -> None:
    suffix, data = kind
    (tmp_path / "a.tar").write_bytes(tar_of({f"1.{suffix}": data, "1.jpg": jpeg(1)}))
    found, others = read(tmp_path / "a.tar")
    assert found["1.jpg"].class_name == LABELS[kind]
    assert others.total() == (LABELS[kind] is None)


def test_a_class_file_beats_the_json_beside_it(tmp_path: Path) -> None:
    files = {"1.json": b'{"label": "dog"}', "1.jpg": jpeg(1), "1.cls": b"cat"}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    assert classes(tmp_path / "a.tar") == {"1.jpg": "cat"}


def test_a_sample_of_endless_images_is_not_held_in_memory() -> None:
    given = 0

    def endless(size: int) -> Iterator[File[str]]:
        nonlocal given
        for given in range(1, 1001):
            yield File(f"one.{given}.jpg", str(given), size)

    held = with_labels(endless(0), Labels(), "a.tar", max_bytes=1000)
    assert next(held) == ("1", None) and given == samples.MAX_SAMPLE_IMAGES + 1
    assert sum(1 for _ in held) == 999
    held = with_labels(endless(600), Labels(), "a.tar", max_bytes=1000)
    assert next(held) == ("1", None) and given == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("range_bytes", [1, 2000, 1 << 26])
def test_a_zip_cut_into_runs_gives_each_member_once(
    method: int, range_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    files = {f"d/{n:03}.jpg": jpeg(n) for n in range(20)}
    (tmp_path / "a.zip").write_bytes(zip_of({"d/": b"", **files}, method))
    pieces = list(listing.pieces(str(tmp_path / "a.zip")))
    assert len(pieces) == {1: 20, 1 << 26: 1}.get(range_bytes, len(pieces))
    assert {key: m.data for key, m in read(tmp_path / "a.zip")[0].items()} == files


def test_a_zip_with_bytes_before_it_or_a_comment_and_one_of_zip64_are_read(tmp_path: Path) -> None:
    data = zip_of(TREE)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"a comment with PK\5\6 in it"
        for name, image in TREE.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(image)
    large = zip64_of(TREE)
    for whole in (data, b"#!/bin/sh\nexec unzip\n" + data, out.getvalue(), large):
        (tmp_path / "a.zip").write_bytes(whole)
        assert {key: m.data for key, m in read(tmp_path / "a.zip")[0].items()} == TREE


def zip64_of(files: Mapping[str, bytes]) -> bytes:
    """A zip whose directory is said in 64 bits, as one of more than 65,535 members."""
    limit = zipfile.ZIP_FILECOUNT_LIMIT
    try:
        zipfile.ZIP_FILECOUNT_LIMIT = 1  # type: ignore[misc]
        return zip_of(files)
    finally:
        zipfile.ZIP_FILECOUNT_LIMIT = limit  # type: ignore[misc]


def test_names_in_a_zip_are_text_of_any_age(tmp_path: Path) -> None:
    data = zip_of({"cat/\u00e9.jpg": jpeg(1), "dog/2.jpg": jpeg(2)})
    (tmp_path / "a.zip").write_bytes(data)
    assert classes(tmp_path / "a.zip") == {"cat/\u00e9.jpg": "cat", "dog/2.jpg": "dog"}
    old = zip_of({"cat/X.jpg": jpeg(1), "dog/2.jpg": jpeg(2)}).replace(b"cat/X", b"cat\\\x82")
    at = old.index(b"PK\1\2")
    dos = bytearray(old)
    for _ in range(2):
        dos[at + 5] = 0  # made by DOS
        at = old.find(b"PK\1\2", at + 1)
    (tmp_path / "b.zip").write_bytes(bytes(dos))
    assert classes(tmp_path / "b.zip") == {"cat/\u00e9.jpg": "cat", "dog/2.jpg": "dog"}


def test_members_of_a_zip_that_cannot_be_read_are_faults_and_the_others_are_read(
    tmp_path: Path,
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("a.jpg", "b.jpg", "c.jpg", "../d.jpg"):
            archive.writestr(name, jpeg(ord(name[-5])))
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    data = bytearray(out.getvalue())
    data[data.index(jpeg(ord("b"))) + 50] ^= 1  # its CRC is wrong
    at = data.index(b"PK\1\2", data.index(b"PK\1\2", data.index(b"PK\1\2") + 1) + 1)
    data[at + 8] |= 1  # c.jpg is encrypted
    (tmp_path / "a.zip").write_bytes(bytes(data))
    found, _ = read(tmp_path / "a.zip")
    kinds = {key: member.fault and member.fault.kind for key, member in found.items()}
    assert kinds == {
        "a.jpg": None,
        "b.jpg": "corrupt",
        "c.jpg": "refused",
        "../d.jpg": "refused",
        "link.jpg": "refused",
    }
    assert "encrypted" in str(found["c.jpg"].fault)


def test_a_zip_that_is_cut_or_none_is_reported(tmp_path: Path) -> None:
    data = zip_of(TREE)
    for bad in (data[:-30], data[100:], b"", b"no zip", b"PK\5\6" + b"\xff" * 18):
        (tmp_path / "a.zip").write_bytes(bad)
        faults = [m.fault.kind for m in read(tmp_path / "a.zip")[0].values() if m.fault]
        assert set(faults) <= {"broken_archive", "corrupt"} and faults


def test_a_tar_in_a_zip_is_read(tmp_path: Path) -> None:
    inner = {f"n0{c}.tar": tar_of({f"{n}.jpg": jpeg(n) for n in range(2)}) for c in (1, 2)}
    (tmp_path / "a.zip").write_bytes(zip_of(inner))
    assert classes(tmp_path / "a.zip") == {
        f"n0{c}/{n}.jpg": f"n0{c}" for c in (1, 2) for n in range(2)
    }


def test_a_remote_zip_is_read_by_its_directory() -> None:
    fsspec.filesystem("memory").pipe("/zips/a.zip", zip_of(TREE))
    found, _ = read("memory://zips/a.zip")
    assert {key: member.data for key, member in found.items()} == TREE
    fsspec.filesystem("memory").rm("/zips", recursive=True)


def test_the_directory_of_a_zip_is_the_same_as_pythons(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of(TREE))
    with zipfile.ZipFile(path) as archive:
        expected = [(i.filename, i.file_size, i.compress_size) for i in archive.infolist()]
    found: list[Any] = [(e.name, e.size, packed) for e, packed in zips.entries(str(path), 0, 0)]
    assert found == expected


@pytest.mark.parametrize("head", ["", "url\n"])
def test_a_list_of_archives_is_a_list_of_archives(head: str, tmp_path: Path) -> None:
    (tmp_path / "s-0.tar").write_bytes(tar_of({"cat/1.jpg": jpeg(1)}))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "s-1.zip").write_bytes(zip_of({"dog/2.jpg": jpeg(2)}))
    (tmp_path / "shards.txt").write_text(f"{head}s-0.tar\n{tmp_path}/more/s-1.zip\n")
    found = list(read(tmp_path / "shards.txt")[0].values())
    assert sorted((m.class_name, m.data) for m in found) == [("cat", jpeg(1)), ("dog", jpeg(2))]
    (tmp_path / "shards.txt").write_text(f"{head}s-0.tar\ncat/1.jpg\n")
    with pytest.raises(UserError, match=r"'cat/1.jpg': a list names images or archives"):
        read(tmp_path / "shards.txt")
    (tmp_path / "shards.txt").write_text("s-9.tar\n")
    with pytest.raises(UserError, match=r"s-9.tar'; there is no such file"):
        read(tmp_path / "shards.txt")

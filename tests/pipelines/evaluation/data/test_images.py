"""Which images an evaluation reads, and what it says about folders it cannot use."""

import io
import struct
from pathlib import Path

import pytest
from helpers import class_folders, noise_image
from PIL import Image

from pipelines import storage
from pipelines.errors import UserError
from pipelines.evaluation.data import images
from pipelines.evaluation.data.images import layout_of, read_images, read_labels
from pipelines.storage import listing


def test_class_folders_give_labels_by_sorted_name(tmp_path: Path) -> None:
    found = read_images(str(class_folders(tmp_path)), "val", 0)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.squares(16).shape == (6, 16, 16, 3)


def test_a_class_may_have_a_dot_in_its_name_and_a_file_is_none(tmp_path: Path) -> None:
    names = ("001.Black_footed_Albatross", "jeep", "st.bernard")
    for name in names:
        noise_image(tmp_path / "train" / name / "0.png")
    (tmp_path / "train" / "README").write_text("not a class")
    assert layout_of(str(tmp_path)) == "classes"
    found = read_images(str(tmp_path), "train", 0)
    assert found.classes == names and found.labels.tolist() == [0, 1, 2]


def test_a_bucket_is_not_asked_whether_images_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_image(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    for name in ("st.bernard/0.png", "0.png", "1.JPG"):
        storage.publish(f"memory://dogs/train/{name}", data)
    requested = []

    def spied(uri: str) -> bool:
        requested.append(uri)
        return uri.endswith("st.bernard")

    monkeypatch.setattr(listing, "is_folder", spied)
    assert images._class_names("memory://dogs/train") == ["st.bernard"] and len(requested) == 1


def test_a_limit_spreads_over_the_whole_split(tmp_path: Path) -> None:
    found = read_images(str(class_folders(tmp_path)), "train", 2)
    assert found.labels.tolist() == [0, 1]


def test_labels_are_those_of_the_images_that_are_read(tmp_path: Path, dataset_uri: str) -> None:
    for uri in (str(class_folders(tmp_path, per_class=4)), dataset_uri):
        for split, limit in (("train", 0), ("val", 5)):
            found = read_labels(uri, split, limit)
            assert found.tolist() == read_images(uri, split, limit).labels.tolist()
            assert len(set(found)) == 2


def test_a_flat_folder_has_no_labels_and_reads_grey_and_palette_images(tmp_path: Path) -> None:
    for number, mode in enumerate(("RGB", "L", "P", "RGBA")):
        noise_image(tmp_path / f"{number}.png", mode=mode)
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_images(str(tmp_path), "val", 0)
    assert layout_of(str(tmp_path)) == "images"
    assert found.labels.tolist() == [-1] * 4 and found.squares(8).shape == (4, 8, 8, 3)


def test_an_upright_reading_of_a_rotated_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to show upright
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert images.decode(buffer.getvalue(), "turned").shape == (40, 20, 3)


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    folder = class_folders(tmp_path)
    before = read_images(str(folder), "train", 0).fingerprint
    assert read_images(str(folder), "train", 0).fingerprint == before
    noise_image(folder / "train" / "cat" / "0.png", seed=99)
    assert read_images(str(folder), "train", 0).fingerprint != before


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    with pytest.raises(UserError, match=r"image 'broken.jpg' cannot be used"):
        read_images(str(tmp_path), "val", 0).squares(8)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    noise_image(tmp_path / "large.png")
    data = (tmp_path / "large.png").read_bytes()
    claimed = struct.pack(">II", 10_000, 8_000)
    (tmp_path / "large.png").write_bytes(data[:16] + claimed + data[24:])
    with pytest.raises(UserError, match=r"'large.png' .*10000 x 8000 px; at most 50000000 pixels"):
        read_images(str(tmp_path), "val", 0).squares(8)


def test_a_class_that_training_has_not_is_refused(tmp_path: Path) -> None:
    folder = class_folders(tmp_path)
    noise_image(folder / "val" / "emu" / "0.png")
    with pytest.raises(UserError, match="emu"):
        read_images(str(folder), "val", 0)


def test_an_empty_split_and_a_useless_folder_are_refused(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "a")
    for name in ("cat", "dog"):
        for file in (folder / "val" / name).iterdir():
            file.unlink()
    with pytest.raises(UserError, match=r"split 'val' of .* is empty"):
        read_images(str(folder), "val", 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"holds data.csv; it must be a prepared dataset"):
        layout_of(str(tmp_path / "b"))
    with pytest.raises(UserError, match="there is no such folder"):
        layout_of(str(tmp_path / "missing"))

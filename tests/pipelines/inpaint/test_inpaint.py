"""Batch filling changes the hole and nothing else, finishes what was begun, and names faults."""

import os
import shutil
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective
from pipelines.errors import UserError
from pipelines.inpaint import run
from pipelines.inpaint.config import InpaintConfig
from pipelines.inpaint.fill import fill_images
from pipelines.inpaint.read import HoleSource, UnreadableImage, read_image, touched_pixels
from pipelines.inpaint.run import find_sources, inpaint_images
from pipelines.models import files
from pipelines.models.files import LoadedModel
from pipelines.runtime import cluster


def save(folder: Path, output: str) -> str:
    network = NetworkConfig(preset="inpaint", output=output, bottleneck=8)  # type: ignore[arg-type]
    objective = Objective(overlap=4 if output == "center" else 0)
    generator = build_generator(network, generator=torch.Generator().manual_seed(0))
    files.save_model(str(folder), generator, network, objective, {})
    return str(folder)


@pytest.fixture(scope="module")
def center(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("center"), "center")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("full"), "full")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(128, 128), (300, 211), (64, 97)])
def test_pixels_outside_the_hole_are_unchanged_at_any_size(
    full: str, size: tuple[int, int]
) -> None:
    model: LoadedModel = files.load_model(full)
    image = picture(0, *size)
    hole = np.random.default_rng(1).random(size) < 0.2
    (filled,) = fill_images(model, [image], [hole], torch.device("cpu"))
    assert (filled[~hole] == image[~hole]).all()
    assert (filled[hole] != image[hole]).mean() > 0.9


@pytest.mark.parametrize("name", ["center", "full"])
def test_what_is_hidden_does_not_show_through(name: str, request: pytest.FixtureRequest) -> None:
    """The network must not see a pixel that it is asked to fill."""
    model = files.load_model(request.getfixturevalue(name))
    image = picture(0, 256, 256)
    hole = np.zeros((256, 256), bool)
    hole[101:140, 99:151] = True
    altered = image.copy()
    altered[hole] = 255 - altered[hole]
    one, other = fill_images(model, [image, altered], [hole, hole], torch.device("cpu"))
    assert (one == other).all()


@pytest.mark.parametrize("size", [(512, 300), (40, 128), (20, 20), (131, 127)])
def test_a_mask_at_another_size_covers_all_that_it_touches(size: tuple[int, int]) -> None:
    """Against the definition, pixel by pixel."""
    hole = np.random.default_rng(0).random(size) < 0.01
    expected = np.zeros((128, 128), bool)
    for row, column in np.argwhere(hole):
        for new_row in range(row * 128 // size[0], -(-(row + 1) * 128 // size[0])):
            for new_column in range(column * 128 // size[1], -(-(column + 1) * 128 // size[1])):
                expected[new_row, new_column] = True
    assert (touched_pixels(hole, 128, 128) == expected).all()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(picture(number, 130 + number, 150)).save(folder / "sub" / f"{number}.png")
    return folder


def config(model: str, images: Path, **options: object) -> InpaintConfig:
    usual = {"output": str(images.parent / "out"), "strategy": "central", "batch_size": 2}
    return InpaintConfig(model=model, images=str(images), **{**usual, **options})  # type: ignore[arg-type]


def test_a_rerun_fills_only_what_is_missing(ray_cluster: None, center: str, images: Path) -> None:
    first = inpaint_images(config(center, images))
    out = images.parent / "out"
    assert first["filled"] == 5 and first["faults"] == {}
    before = {path.name: path.read_bytes() for path in (out / "sub").iterdir()}
    (out / "commit.json").unlink()  # as after a kill
    (out / "sub" / "3.png").unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "sub").iterdir()}
    assert inpaint_images(config(center, images)) == first
    assert {path.name: path.read_bytes() for path in (out / "sub").iterdir()} == before
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "sub").iterdir()}
    assert {name: kept[name] for name in stamps} == stamps
    with pytest.raises(UserError, match="another job"):
        inpaint_images(config(center, images, seed=1))


def test_masks_are_taken_by_name_and_faults_are_named(
    ray_cluster: None, full: str, images: Path
) -> None:
    masks = images.parent / "masks" / "sub"
    masks.mkdir(parents=True)
    hole = np.zeros((130, 150), np.uint8)
    hole[10:30, 20:50] = 255
    Image.fromarray(hole).save(masks / "0.png")
    Image.fromarray(hole).save(masks / "1.png")  # the image has 131 rows
    (images / "sub" / "2.png").write_bytes(b"not an image")
    options = {"strategy": None, "masks": str(masks.parent)}
    with pytest.raises(UserError, match="4 of 5 images could not be filled"):
        inpaint_images(config(full, images, **options))
    assert not (images.parent / "out" / "commit.json").exists()
    found = inpaint_images(config(full, images, **options, max_bad_share=0.8))
    assert found["filled"] == 1 and sorted(found["faults"]) == [
        f"sub/{n}.png" for n in (1, 2, 3, 4)
    ]
    assert "(150, 131)" in found["faults"]["sub/1.png"]
    assert "not there" in found["faults"]["sub/3.png"]
    filled = np.asarray(Image.open(images.parent / "out" / "sub" / "0.png"))
    assert (filled[hole == 0] == picture(0, 130, 150)[hole == 0]).all()


def test_a_hole_that_a_central_model_cannot_fill_is_a_fault(
    ray_cluster: None, center: str, images: Path
) -> None:
    with pytest.raises(UserError, match="all that this model fills"):
        inpaint_images(config(center, images, strategy="random_region"))


def test_bad_input_is_refused_before_any_work(center: str, tmp_path: Path, images: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        inpaint_images(config(center, tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is not a model folder"):
        inpaint_images(config(str(tmp_path), images))
    with pytest.raises(ValueError, match="exactly one of them"):
        config(center, images, strategy=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.jpg or \.png image"):
        inpaint_images(config(center, tmp_path / "empty"))


def read(folder: Path, name: str, model: str, masks: Path | None = None) -> tuple[np.ndarray, ...]:
    holes = HoleSource(masks and str(masks), None if masks else "central", 0)  # type: ignore[arg-type]
    return read_image(name, images_uri=str(folder), holes=holes, model=files.load_model(model))


def test_a_16_bit_picture_keeps_its_greys(full: str, tmp_path: Path) -> None:
    grey = picture(0, 50, 60)[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    read_back, _ = read(tmp_path, "deep.png", full)
    assert (read_back == grey[..., None]).all()


@pytest.mark.parametrize("kind", ["palette", "dark colour", "16 bits"])
def test_a_mask_hides_what_is_not_black_however_dark_it_is(
    full: str, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture(0, 50, 60)).save(tmp_path / "a.png")
    hole = np.zeros((50, 60), bool)
    hole[10:20, 30:40] = True
    masks = {
        "palette": Image.fromarray(hole.astype(np.uint8), "P"),
        "dark colour": Image.fromarray(hole[..., None] * np.array([0, 0, 3], np.uint8)),
        "16 bits": Image.fromarray(hole.astype(np.uint16)),
    }
    masks["palette"].putpalette([0, 0, 0, 0, 0, 2])
    masks[kind].save(tmp_path / "masks" / "a.png")
    assert (read(tmp_path, "a.png", full, tmp_path / "masks")[1] == hole).all()


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_noise_of_a_jpeg_mask_hides_nothing(full: str, tmp_path: Path, quality: int) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture(0, 150, 160)).save(tmp_path / "a.jpg")
    hole = np.zeros((150, 160), bool)
    hole[33:99, 41:107] = True
    white = Image.fromarray(hole.astype(np.uint8) * 255)
    white.save(tmp_path / "masks" / "a.jpg", quality=quality)
    assert (read(tmp_path, "a.jpg", full, tmp_path / "masks")[1] == hole).all()
    white.point(lambda value: value // 4).save(tmp_path / "masks" / "a.jpg", quality=quality)
    with pytest.raises(UnreadableImage, match="dark JPEG"):
        read(tmp_path, "a.jpg", full, tmp_path / "masks")


def test_whatever_broken_bytes_do_to_the_decoder_is_a_fault_of_the_picture(
    full: str, tmp_path: Path
) -> None:
    body = b"IHDR" + struct.pack(">II", 4, 4)  # the header ends early
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(UnreadableImage, match="Truncated IHDR"):
        read(tmp_path, "a.png", full)
    Image.fromarray(picture(0, 1, 1)).save(tmp_path / "tiny.png")
    with pytest.raises(UnreadableImage, match="1 x 1 px; too small for a drawn hole"):
        read(tmp_path, "tiny.png", full)


def test_pictures_are_found_in_folders_of_any_name(center: str, tmp_path: Path) -> None:
    for name in ("v1.0/a b.png", "x.jpg/c.JPG", "d.png", "e.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"12345")
    found = find_sources(config(center, tmp_path / "images"))
    assert found == {"d.png": [5, None], "v1.0/a b.png": [5, None], "x.jpg/c.JPG": [5, None]}
    (tmp_path / "images" / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"'\\udce9.png' in it is not UTF-8"):
        find_sources(config(center, tmp_path / "images"))


@pytest.mark.parametrize("inside", ["images", "images/filled", "masks"])
def test_an_output_among_the_pictures_or_masks_is_refused(
    center: str, images: Path, inside: str
) -> None:
    (images.parent / "masks").mkdir()
    requested = {"strategy": None, "masks": str(images.parent / "masks")}
    before = sorted(images.parent.rglob("*"))
    with pytest.raises(UserError, match=f"which lies in {inside.partition('/')[0]} "):
        inpaint_images(config(center, images, output=str(images.parent / inside), **requested))
    assert sorted(images.parent.rglob("*")) == before


def test_files_of_others_are_neither_taken_for_results_nor_overwritten(
    center: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = images.parent / "out" / "sub" / "3.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds sub/3\.png already"):
        inpaint_images(config(center, images))
    mine.unlink()
    (images.parent / "out" / "commit.json").write_text("{}")  # of another stage, say
    with pytest.raises(UserError, match=r"holds commit\.json already"):
        inpaint_images(config(center, images))
    (images.parent / "out" / "commit.json").unlink()
    for foreign in ("{}", "no JSON"):
        (images.parent / "out" / "job.json").write_text(foreign)
        with pytest.raises(UserError, match="another job"):
            inpaint_images(config(center, images))
    (images.parent / "out" / "job.json").unlink()
    monkeypatch.setattr(cluster, "connect", nullcontext)
    monkeypatch.setattr(run, "_fill_all", lambda *_: {})
    inpaint_images(config(center, images))
    twin = shutil.copytree(images, images.parent / "day 2" / "images")
    with pytest.raises(UserError, match="another job"):
        inpaint_images(config(center, twin, output=str(images.parent / "out")))


def test_a_changed_picture_is_not_taken_for_filled(
    ray_cluster: None, full: str, images: Path
) -> None:
    masks = images.parent / "masks"
    (masks / "sub").mkdir(parents=True)
    for number in range(4):
        hole = np.zeros((130 + number, 150), np.uint8)
        hole[10:30, 20:50] = 255
        Image.fromarray(hole).save(masks / "sub" / f"{number}.png")
    requested = config(full, images, strategy=None, masks=str(masks), max_bad_share=0.2)
    assert list(inpaint_images(requested)["faults"]) == ["sub/4.png"]
    Image.fromarray(picture(0, 134, 150)[..., 0]).save(masks / "sub" / "4.png")  # it was lacking
    assert inpaint_images(requested)["filled"] == 5
    Image.fromarray(picture(9, 133, 150) // 2).save(images / "sub" / "3.png")
    with pytest.raises(UserError, match=r"holds sub/3\.png made from another image"):
        inpaint_images(requested)
    (images.parent / "out" / "sub" / "3.png").unlink()
    assert inpaint_images(requested)["filled"] == 5
    filled = np.asarray(Image.open(images.parent / "out" / "sub" / "3.png"))
    assert (filled[40:] == picture(9, 133, 150)[40:] // 2).all()
    (images.parent / "out" / "sub" / "3.png").unlink()  # of a finished job
    assert inpaint_images(requested)["filled"] == 5
    assert (np.asarray(Image.open(images.parent / "out" / "sub" / "3.png")) == filled).all()
    shutil.rmtree(images.parent / "out" / "sub")
    (images.parent / "out" / "sub").write_bytes(b"a file where a folder has to be")
    with pytest.raises(OSError, match="File exists"):
        inpaint_images(requested)
    assert not (images.parent / "out" / "commit.json").exists()


def test_a_fault_of_the_storage_ends_in_one_message(
    ray_cluster: None, center: str, images: Path
) -> None:
    (images.parent / "out").mkdir()
    (images.parent / "out" / "sub").write_bytes(b"a file where a folder has to be")
    with pytest.raises(OSError, match="File exists"):
        inpaint_images(config(center, images))

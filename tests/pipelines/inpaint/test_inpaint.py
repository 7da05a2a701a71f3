"""Batch filling changes the hole and nothing else, finishes what was begun, and names faults."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import Objective
from pipelines.errors import UserError
from pipelines.inpaint import run
from pipelines.inpaint.config import InpaintConfig
from pipelines.inpaint.read import HoleSource, UnreadableImage, read_image
from pipelines.inpaint.run import inpaint_images
from pipelines.inpaint.sources import Source, find_sources
from pipelines.models import files


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


def image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(image(number, 130 + number, 150)).save(folder / "sub" / f"{number}.png")
    return folder


def config(model: str, images: Path, **options: object) -> InpaintConfig:
    usual = {"output": str(images.parent / "out"), "strategy": "central", "batch_size": 2}
    return InpaintConfig(model=model, images=str(images), **{**usual, **options})  # type: ignore[arg-type]


def test_a_rerun_fills_only_what_is_missing(center: str, images: Path) -> None:
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
    Image.fromarray(hole[:, :90]).save(masks / "1.png")  # the image has 150 columns
    Image.fromarray(hole).save(masks / "2.png")
    (images / "sub" / "2.png").write_bytes(b"not an image")
    options = {"strategy": None, "masks": str(masks.parent)}
    with pytest.raises(UserError, match="2 of 5 images have no mask"):
        inpaint_images(config(full, images, **options))
    options["actors"] = 1  # on Ray
    assert not (images.parent / "out" / "commit.json").exists()
    found = inpaint_images(config(full, images, **options, max_bad_share=0.8))
    assert found["filled"] == 1 and sorted(found["faults"]) == [
        f"sub/{n}.png" for n in (1, 2, 3, 4)
    ]
    assert "90 x 130 px and the image 150 x 131 px" in found["faults"]["sub/1.png"]
    assert "it has no mask" in found["faults"]["sub/3.png"]
    filled = np.asarray(Image.open(images.parent / "out" / "sub" / "0.png"))
    assert (filled[hole == 0] == image(0, 130, 150)[hole == 0]).all()


@pytest.mark.parametrize("strategy", ["random_region", "random_block"])
def test_a_central_model_fills_holes_anywhere(center: str, images: Path, strategy: str) -> None:
    assert inpaint_images(config(center, images, strategy=strategy))["filled"] == 5


def test_bad_input_is_refused_before_any_work(center: str, tmp_path: Path, images: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder and no such file"):
        inpaint_images(config(center, tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"there is no model\.json"):
        inpaint_images(config(str(tmp_path), images))
    with pytest.raises(ValueError, match="exactly one of them"):
        config(center, images, strategy=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no JPEG, PNG, WebP or AVIF image"):
        inpaint_images(config(center, tmp_path / "empty"))


def read(path: Path, mask: Path | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    holes = HoleSource(None if mask else "central", 0)
    source = Source(str(path), 0, None if mask is None else str(mask), None)
    return read_image(path.name, source, holes, overlap=0)


def test_a_16_bit_image_keeps_its_greys(tmp_path: Path) -> None:
    grey = image(0, 50, 60)[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (read(tmp_path / "deep.png")[0] == grey[..., None]).all()


@pytest.mark.parametrize("kind", ["palette", "dark colour", "16 bits"])
def test_a_mask_hides_what_is_not_black_however_dark_it_is(tmp_path: Path, kind: str) -> None:
    Image.fromarray(image(0, 50, 60)).save(tmp_path / "a.png")
    hole = np.zeros((50, 60), bool)
    hole[10:20, 30:40] = True
    masks = {
        "palette": Image.fromarray(hole.astype(np.uint8), "P"),
        "dark colour": Image.fromarray(hole[..., None] * np.array([0, 0, 3], np.uint8)),
        "16 bits": Image.fromarray(hole.astype(np.uint16)),
    }
    masks["palette"].putpalette([0, 0, 0, 0, 0, 2])
    masks[kind].save(tmp_path / "mask.png")
    assert (read(tmp_path / "a.png", tmp_path / "mask.png")[1] == hole).all()


def test_whatever_broken_bytes_do_to_the_decoder_is_a_fault_of_the_image(tmp_path: Path) -> None:
    body = b"IHDR" + struct.pack(">II", 4, 4)  # the header ends early
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(UnreadableImage, match="Truncated IHDR"):
        read(tmp_path / "a.png")
    Image.fromarray(image(0, 1, 1)).save(tmp_path / "tiny.png")
    with pytest.raises(UnreadableImage, match="1 x 1 px; too small for a drawn hole"):
        read(tmp_path / "tiny.png")


def test_one_image_and_its_mask_are_filled_without_ray(full: str, tmp_path: Path) -> None:
    photo, hole = image(0, 90, 140), np.zeros((90, 140), np.uint8)
    hole[:30, 100:] = 255
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "what to remove.png")
    program = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "from pipelines.inpaint.config import InpaintConfig\n"
        "from pipelines.inpaint.run import inpaint_images\n"
        f"inpaint_images(InpaintConfig(model={full!r}, images={str(tmp_path / 'photo.png')!r}, "
        f"masks={str(tmp_path / 'what to remove.png')!r}, output={str(tmp_path / 'out')!r}))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    filled = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    assert (filled[hole == 0] == photo[hole == 0]).all()
    assert (filled[hole > 0] != photo[hole > 0]).any(axis=1).mean() > 0.9
    page = (tmp_path / "out" / "index.html").read_text()
    assert "photo.png" in page and page.count("data:image/jpeg") == 4


def test_images_of_all_kinds_are_found_and_others_are_counted(
    center: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.webp", "c.bmp", "d.tif", "e.avif", "g.png", "h.TIF"):
        Image.fromarray(image(0, 60, 70)).save(folder / name)
    found = find_sources(config(center, folder))
    assert list(found.by_name) == ["a.jpg", "b.webp", "e.avif", "g.png"]
    assert found.others == {".bmp": 1, ".tif": 2}
    counts = inpaint_images(config(center, folder))
    assert counts["filled"] == 4 and counts["left_out"] == {".bmp": 1, ".tif": 2}
    assert "1 .bmp, 2 .tif" in capsys.readouterr().err


def test_what_was_assumed_of_masks_is_counted(full: str, images: Path) -> None:
    masks = images.parent / "masks" / "sub"
    masks.mkdir(parents=True)
    for number in range(5):
        hole = np.zeros((260 + 2 * number, 300), np.uint8)
        hole[20:60, 40:100] = 255
        layer = np.dstack([hole * 0 + 255] * 3 + [hole])
        Image.fromarray(layer).save(masks / f"{number}.png")
    counts = inpaint_images(config(full, images, strategy=None, masks=str(masks.parent)))
    assert counts["filled"] == 5 and len(counts["notes"]) == 5
    assert "resized from 300 x 260 px" in counts["notes"]["sub/0.png"]
    assert "opaque pixels were taken" in counts["notes"]["sub/0.png"]


def test_images_are_found_in_folders_of_any_name(center: str, tmp_path: Path) -> None:
    for name in ("v1.0/a b.png", "x.jpg/c.JPG", "d.png", "e.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"12345")
    found = find_sources(config(center, tmp_path / "images"))
    assert list(found.by_name) == ["d.png", "v1.0/a b.png", "x.jpg/c.JPG"]
    assert found.others == {".txt": 1}
    (tmp_path / "images" / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"'\\udce9.png' in it is not UTF-8"):
        find_sources(config(center, tmp_path / "images"))


@pytest.mark.parametrize("inside", ["images", "images/filled", "masks"])
def test_an_output_among_the_images_or_masks_is_refused(
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
    monkeypatch.setattr(run, "_results", lambda *_: iter(()))
    monkeypatch.setattr(run, "write_gallery", lambda *_, **__: "")
    inpaint_images(config(center, images))
    twin = shutil.copytree(images, images.parent / "day 2" / "images")
    with pytest.raises(UserError, match="another job"):
        inpaint_images(config(center, twin, output=str(images.parent / "out")))


def test_a_changed_image_is_not_taken_for_filled(full: str, images: Path) -> None:
    masks = images.parent / "masks"
    (masks / "sub").mkdir(parents=True)
    for number in range(4):
        hole = np.zeros((130 + number, 150), np.uint8)
        hole[10:30, 20:50] = 255
        Image.fromarray(hole).save(masks / "sub" / f"{number}.png")
    lacking = np.pad(hole, ((0, 1), (0, 0)))
    requested = config(full, images, strategy=None, masks=str(masks), max_bad_share=0.2)
    assert list(inpaint_images(requested)["faults"]) == ["sub/4.png"]
    Image.fromarray(lacking).save(masks / "sub" / "4.png")
    assert inpaint_images(requested)["filled"] == 5
    Image.fromarray(image(9, 133, 150) // 2).save(images / "sub" / "3.png")
    with pytest.raises(UserError, match=r"holds sub/3\.png made from another image"):
        inpaint_images(requested)
    (images.parent / "out" / "sub" / "3.png").unlink()
    assert inpaint_images(requested)["filled"] == 5
    filled = np.asarray(Image.open(images.parent / "out" / "sub" / "3.png"))
    assert (filled[40:] == image(9, 133, 150)[40:] // 2).all()
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
    """On Ray, which wraps errors of tasks."""
    (images.parent / "out").mkdir()
    (images.parent / "out" / "sub").write_bytes(b"a file where a folder has to be")
    with pytest.raises(OSError, match="File exists"):
        inpaint_images(config(center, images, actors=1))

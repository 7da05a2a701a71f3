"""Images, folders and processes for the tests."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]


def in_fresh_process(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def end_orphans(processes: list[psutil.Process]) -> None:
    """End what a killed driver leaves behind: Ray's agents notice its death after a minute."""
    for process in psutil.wait_procs(processes, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def postgres_folder() -> Path | None:
    """Where `postgres` and `initdb` are: on the path, or where Debian puts them."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def draw_image(number: int, height: int, width: int) -> np.ndarray:
    """A smooth, coloured image that no other number gives: uint8 (H, W, 3) RGB."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_images(folder: Path, classes: dict[str, int], first: int = 0) -> None:
    """Class folders with that many JPEG images each."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image = draw_image(first, 150 + first % 7, 160 + first % 11)
            path = str(folder / name / f"{first:04d}.jpg")
            assert cv2.imwrite(path, image[..., ::-1])
            first += 1


def noise_image(
    path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def class_folders(root: Path, per_class: int = 3) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(per_class):
                noise_image(root / split / name / f"{number}.png", seed=10 * label + number)
    return root


def annotation(*objects: tuple[str, tuple[int, int, int, int], int]) -> str:
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{b[0]}</xmin>"
        f"<ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for name, b, difficult in objects
    ]
    return f"<annotation>{''.join(parts)}</annotation>"


def voc_folder(root: Path) -> Path:
    """Two images of 40 x 30 px: a cat and a difficult dog; nothing."""
    folder = root / "VOCdevkit" / "VOC2007"
    for number, name in enumerate(("a", "b")):
        noise_image(folder / "JPEGImages" / f"{name}.jpg", seed=number)
    (folder / "Annotations").mkdir()
    text = annotation(("cat", (1, 1, 40, 30), 0), ("dog", (11, 6, 20, 25), 1))
    (folder / "Annotations" / "a.xml").write_text(text)
    (folder / "Annotations" / "b.xml").write_text(annotation())
    (folder / "SegmentationClass").mkdir()
    for name in ("a", "b"):
        labels = np.zeros((30, 40), np.uint8)
        labels[5:9, 5:9], labels[0] = 8, 255
        Image.fromarray(labels).convert("P").save(folder / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (folder / "ImageSets" / kind).mkdir(parents=True)
        (folder / "ImageSets" / kind / "train.txt").write_text("a\nb\n")
    return folder


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def add_member(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def tar_of(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            add_member(archive, name, data)
    return out.getvalue()

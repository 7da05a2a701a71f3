"""VOC and CamVid folders: what is read, and one clear message for each fault."""

from pathlib import Path

import numpy as np
import pytest
from helpers import annotation, noise_image, voc_folder
from PIL import Image

from pipelines.errors import UserError
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.data import proposals, voc
from pipelines.evaluation.data.images import layout_of
from pipelines.evaluation.data.targets import IGNORED
from pipelines.evaluation.settings import TaskName
from pipelines.evaluation.tasks import finetune

CLASSES = ("cat", "dog")


def test_boxes_count_from_zero_and_difficult_ones_are_marked(tmp_path: Path) -> None:
    voc_folder(tmp_path)
    assert layout_of(str(tmp_path)) == "voc"
    found = voc.read_annotated(str(tmp_path), "train", CLASSES)
    assert found.objects[0].box.tolist() == [[0, 0, 39, 29], [10, 5, 19, 24]]
    assert found.objects[0].classes.tolist() == [0, 1]
    assert found.objects[0].difficult.tolist() == [False, True]
    assert found.objects[1].box.shape == (0, 4)


def test_several_labels_ignore_what_is_only_difficult(tmp_path: Path) -> None:
    voc_folder(tmp_path)
    task = voc.read_several(str(tmp_path), "train", CLASSES)
    assert task.targets.tolist() == [[1, IGNORED], [0, 0]]


def test_a_score_of_another_loss_for_several_labels_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc_folder(tmp_path)
    config = EvaluateConfig(
        model=("random",),
        data=(str(tmp_path),),
        voc=voc.VocSettings(classes=CLASSES, train="train", test="train"),
    )

    def keys() -> list[str]:
        tasks: tuple[TaskName, ...] = ("finetune", "detection")
        return [TASKS[task].fingerprint(str(tmp_path), "voc", config) for task in tasks]

    before = keys()
    monkeypatch.setattr(finetune, "SEVERAL_VERSION", finetune.SEVERAL_VERSION + 1)
    after = keys()
    assert before[0] != after[0] and before[1] == after[1]


def test_label_maps_keep_palette_numbers_and_void(tmp_path: Path) -> None:
    voc_folder(tmp_path)
    found = voc.read_mapped(str(tmp_path), "train")
    assert set(np.unique(found.maps[0])) == {0, 8, 255}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_camvid_folders_are_read_by_name(suffix: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        noise_image(tmp_path / split / f"x.{suffix}")
        (tmp_path / f"{split}annot").mkdir()
        Image.fromarray(np.full((30, 40), 10, np.uint8)).save(tmp_path / f"{split}annot" / "x.png")
    assert layout_of(str(tmp_path)) == "camvid"
    found = voc.read_mapped(str(tmp_path), "val")
    assert found.maps[0].max() == 10 and found.images.classes[10] == "bicyclist"


def test_an_annotation_without_its_image_is_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    (folder / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"'JPEGImages/b.jpg' is missing"):
        voc.read_annotated(str(tmp_path), "train", CLASSES)


def test_an_image_without_its_annotation_is_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    (folder / "Annotations" / "b.xml").unlink()
    with pytest.raises(UserError, match=r"'Annotations/b.xml' is missing"):
        voc.read_annotated(str(tmp_path), "train", CLASSES)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((1, 1, 41, 30), r"outside its image of 40 x 30 px"),
        ((0, 1, 40, 30), r"outside its image"),
        ((10, 10, 10, 20), r"has no area"),
        ((20, 10, 10, 20), r"has no area"),
    ],
)
def test_a_box_that_cannot_be_is_refused(
    tmp_path: Path, box: tuple[int, int, int, int], reason: str
) -> None:
    folder = voc_folder(tmp_path)
    (folder / "Annotations" / "b.xml").write_text(annotation(("cat", box, 0)))
    with pytest.raises(UserError, match=rf"Annotations/b.xml.*{reason}"):
        voc.read_annotated(str(tmp_path), "train", CLASSES)


def test_an_unknown_class_is_refused_with_the_flag_that_names_classes(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    (folder / "Annotations" / "b.xml").write_text(annotation(("raccoon", (1, 1, 9, 9), 0)))
    with pytest.raises(UserError, match=r"class 'raccoon'; known are cat, dog.*--voc.classes"):
        voc.read_annotated(str(tmp_path), "train", CLASSES)


def test_broken_xml_is_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"Annotations/b.xml' is not a VOC annotation"):
        voc.read_annotated(str(tmp_path), "train", CLASSES)


def test_a_label_map_of_another_size_or_with_an_unknown_label_is_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    target = folder / "SegmentationClass" / "b.png"
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(target)
    with pytest.raises(UserError, match="is 41 x 30 px; its image is 40 x 30"):
        voc.read_mapped(str(tmp_path), "train")
    Image.fromarray(np.full((30, 40), 21, np.uint8)).save(target)
    with pytest.raises(UserError, match="holds the label 21; labels are 0 to 20"):
        voc.read_mapped(str(tmp_path), "train")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(target)
    with pytest.raises(UserError, match="PNG of mode RGB"):
        voc.read_mapped(str(tmp_path), "train")


def test_an_empty_and_a_missing_split_are_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"split 'val' is empty"):
        voc.read_annotated(str(tmp_path), "val", CLASSES)
    with pytest.raises(UserError, match=r"split 'test' has no .*; there are train, val"):
        voc.read_annotated(str(tmp_path), "test", CLASSES)


def test_proposals_are_stored_once_and_read_back(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path)
    scene = np.full((90, 120, 3), 40, np.uint8)
    scene[20:70, 30:90] = (250, 200, 10)
    Image.fromarray(scene).save(folder / "JPEGImages" / "b.jpg", quality=95)
    found = voc.read_annotated(str(tmp_path), "train", CLASSES).images
    uri = proposals.ensure(str(tmp_path / "store"), found)
    stamp = Path(uri).stat().st_mtime_ns
    assert proposals.ensure(str(tmp_path / "store"), found) == uri
    assert Path(uri).stat().st_mtime_ns == stamp
    boxes = proposals.read([uri])
    assert len(boxes) == 2
    distance = np.abs(boxes[1] - np.array([30, 20, 89, 69])).max(axis=1)
    assert distance.min() <= 4  # the block is among the regions


def test_an_image_without_structure_has_itself_as_region() -> None:
    flat = np.full((10, 12, 3), 9, np.uint8)  # smaller than any region
    assert proposals.search(flat).tolist() == [[0, 0, 11, 9]]

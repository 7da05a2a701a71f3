"""The sample images: what is validated on was never trained on."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.data import sample_images


@pytest.mark.parametrize("name", sample_images.PHOTOGRAPHS)
@pytest.mark.parametrize("width", [448, 700])
def test_no_training_crop_reaches_into_the_validation_part(name: str, width: int) -> None:
    image = np.zeros((sample_images.PHOTOGRAPH_SHORTER, width, 3), np.uint8)
    crops = sample_images.cuts(image, name)
    assert crops == sample_images.cuts(image, name)
    train, val = (
        [(crop.left, crop.left + crop.side) for crop in crops[split]] for split in ("train", "val")
    )
    assert max(right for _, right in train) <= min(left for left, _ in val)
    assert (len(train), len(val)) == (sample_images.TRAIN_CROPS, sample_images.VALIDATION_CROPS)
    for crop in crops["train"] + crops["val"]:
        assert 128 <= crop.side <= 192
        assert min(crop.top, crop.left) >= 0
        assert crop.top + crop.side <= sample_images.PHOTOGRAPH_SHORTER
        assert crop.left + crop.side <= width


def test_samples_that_were_cut_short_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_images, "TRAIN_CROPS", 2)
    monkeypatch.setattr(sample_images, "VALIDATION_CROPS", 1)
    monkeypatch.setattr(
        sample_images, "PHOTOGRAPHS", {"chelsea": sample_images.PHOTOGRAPHS["chelsea"]}
    )
    publish = storage.publish

    def full(uri: str, data: bytes, *, exclusive: bool = False) -> None:
        if "/val/" in uri:
            raise OSError("No space left on device")
        publish(uri, data, exclusive=exclusive)

    monkeypatch.setattr(storage, "publish", full)
    with pytest.raises(OSError, match="No space left"):
        sample_images.ensure(str(tmp_path))
    monkeypatch.setattr(storage, "publish", publish)
    folder = Path(sample_images.ensure(str(tmp_path)))
    assert len(list(folder.rglob("*.jpg"))) == 3
    assert Path(sample_images.ensure(str(tmp_path))) == folder

"""The logged model fills holes wherever they are, in images of any size."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import draw_image
from model_helpers import save_small_model

from pipelines.errors import UserError
from pipelines.models.pyfunc import ServedContextEncoder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedContextEncoder:
    folder = save_small_model(Path(tmp_path_factory.mktemp("model")))
    model = ServedContextEncoder()
    model.load_context(SimpleNamespace(artifacts={"model": folder}))
    return model


@pytest.mark.parametrize("size", [(128, 128), (90, 200)])
def test_a_central_model_fills_a_hole_in_a_corner(
    served: ServedContextEncoder, size: tuple[int, int]
) -> None:
    image = np.stack([draw_image(number, *size) for number in range(2)])
    mask = np.zeros((2, *size), np.uint8)
    mask[:, :30, :40] = 1
    found = served.predict(None, {"image": image, "mask": mask})
    assert (found["filled"][mask == 0] == image[mask == 0]).all()
    assert (found["filled"][mask == 1] != image[mask == 1]).any(axis=1).mean() > 0.9
    assert found["features"].shape == (2, 8) and found["features"].dtype == np.float32


def test_a_mask_without_anything_visible_is_an_error(served: ServedContextEncoder) -> None:
    image = draw_image(0, 128, 128)[None]
    with pytest.raises(UserError, match="hides the whole image"):
        served.predict(None, {"image": image, "mask": np.ones((1, 128, 128), np.uint8)})

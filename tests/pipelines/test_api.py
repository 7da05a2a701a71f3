"""The Python face: lazy, typed as the configs are, and one error class."""

import importlib
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from helpers import draw_image, in_fresh_process, write_images
from model_helpers import SMALL, save_small_model
from PIL import Image

from ce_model.networks import build_generator
from pipelines import api, cli
from pipelines.api_settings import PrepareSettings, PretrainSettings, checked_settings
from pipelines.data import images
from pipelines.models import files
from pipelines.prepare.config import PrepareConfig
from pipelines.pretrain.config import PretrainConfig

SIZES = ((128, 128), (200, 150), (90, 310))


def test_importing_it_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pipelines.api import load, prepare, pretrain\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'cv2', 'PIL', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    in_fresh_process(program, tmp_path)


@pytest.mark.parametrize(
    ("settings", "config", "own"),
    [
        (PrepareSettings, PrepareConfig, {"source", "output", "store", "dry_run"}),
        (PretrainSettings, PretrainConfig, {"source", "store", "preset", "steps"}),
    ],
)
def test_settings_are_typed_as_the_fields_of_the_config(
    settings: Any, config: Any, own: set[str]
) -> None:
    names = {}
    for base in config.__mro__[:-1]:
        names |= vars(importlib.import_module(base.__module__))
    wanted = {name: kind for name, kind in get_type_hints(config).items() if name not in own}
    # On failure: write the fields of the config that changed into pipelines/api_settings.py.
    assert get_type_hints(settings, localns=names) == wanted


def test_settings_give_the_config_of_the_same_flags() -> None:
    flags = ["--adversarial", "0", "--fill", "1", "2", "3", "--seed", "4", "--strategy", "central"]
    given = {"adversarial": 0, "fill": [1, 2, 3], "seed": 4, "strategy": "central"}
    found = checked_settings("pretrain", PretrainConfig, given)
    assert repr(found) == repr(cli.parse(PretrainConfig, flags))  # 0.0, not 0: keys differ


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_sise": 3}, "pretrain has no setting 'batch_sise'; did you mean 'batch_size'?"),
        ({"steps": "20"}, "pretrain: steps is '20'; it must be int"),
        ({"steps": True}, "pretrain: steps is True; it must be int"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"preset": "alex"}, "preset is 'alex'; it must be one of 'inpaint'"),
        ({"groups": True}, "groups is True; it must be one of 1, 2"),
        ({"adversarial": 2}, "objective.adversarial is 2.0; it must be 0 to 1"),
        (
            {"fill": (1, 2)},
            r"fill is \(1, 2\); it must be a list of 3 times float or one of .smooth.",
        ),
        ({"shorter": 1.5}, "shorter is 1.5; it must be int or None"),
    ],
)
def test_a_wrong_setting_is_one_message(given: dict[str, Any], message: str) -> None:
    if "preset" in given:
        message = message.partition("'inpaint'")[0]
    with pytest.raises(api.UserError, match=message):
        checked_settings("pretrain", PretrainConfig, given)


def test_preparing_gives_what_is_in_the_dataset(serially: None, tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", {"apple": 3, "pear": 2})
    write_images(tmp_path / "photos" / "val", {"apple": 1, "pear": 1}, first=10)
    dataset = api.prepare(tmp_path / "photos", tmp_path / "d", sides=[64], strategies=["central"])
    assert (dataset.splits, dataset.classes) == ({"train": 5, "val": 2}, ("apple", "pear"))
    assert (str(dataset), len(dataset.fingerprint)) == (str(tmp_path / "d"), 64)
    again = api.prepare(
        str(tmp_path / "photos"), tmp_path / "d", sides=(64,), strategies=("central",)
    )
    assert again == dataset


def test_what_is_not_there_is_a_user_error(serially: None, tmp_path: Path) -> None:
    with pytest.raises(api.UserError, match="source is '/nowhere'; there is no such"):
        api.prepare("/nowhere", tmp_path / "d")
    with pytest.raises(api.UserError, match=r"there is no model\.json"):
        api.load(tmp_path, store=tmp_path)
    with pytest.raises(api.UserError, match="device is 'cuda:77', which cannot be used"):
        api.load(save_small_model(tmp_path / "m"), store=tmp_path, device="cuda:77")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    folder = tmp_path_factory.mktemp("model")
    measured = {"psnr_hole": 12.5, "l1_hole": 0.1}
    generator = build_generator(SMALL, generator=torch.Generator().manual_seed(1))
    objective = files.load_model(save_small_model(folder / "other")).objective
    info = {"strategy": "central", "steps": 1200, "validation": measured}
    files.save_model(str(folder / "model"), generator, SMALL, objective, info)
    return api.load(folder / "model", store=folder, device="cpu")


def test_a_model_shows_what_it_is(model: api.Model) -> None:
    assert model.metrics == {"psnr_hole": 12.5, "l1_hole": 0.1}
    assert model.run_id is None
    assert repr(model) == (
        f"<Model inpaint, central holes, 1,200 steps, PSNR in the hole 12.50 dB: {model.uri}>"
    )
    assert list(model.layers) == ["e1", "e2", "e3", "e4", "e5", "e6"]
    assert (model.layers["e1"], model.layers["e6"]) == ((64, 64, 64), (8,))


def photographs() -> list[np.ndarray]:
    return [draw_image(number, *size) for number, size in enumerate(SIZES)]


def test_filling_changes_the_pixels_under_the_masks_alone(model: api.Model) -> None:
    images = photographs()
    masks = []
    for image in images:
        mask = np.zeros(image.shape[:2], bool)
        middle = image.shape[0] // 2, image.shape[1] // 2
        mask[middle[0] - 15 : middle[0] + 15, middle[1] - 15 : middle[1] + 15] = True
        masks.append(mask)
    kept = [image.copy() for image in images]
    filled = model.fill(images, masks)
    for before, image, mask, after in zip(kept, images, masks, filled, strict=True):
        assert after.dtype == np.uint8 and after.shape == before.shape
        assert (after[~mask] == before[~mask]).all() and (image == before).all()
        assert (after[mask] != before[mask]).any()
    grey = [np.uint8(255) * mask for mask in masks]
    as_images = [Image.fromarray(mask) for mask in grey]
    for same in (grey, as_images):
        for expected, found in zip(filled, model.fill(images, same), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_features_are_those_of_the_encoder_on_centre_squares(model: api.Model) -> None:
    photos = photographs()
    squares = np.stack([images.square(photo, 128, 128, 0.5, 0.5) for photo in photos])
    x = torch.from_numpy(squares).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = model._loaded.generator.encoder_features(x)
    for layer in ("e2", "e6"):
        found = model.embed(photos, layer=layer, batch_size=2)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[layer].flatten(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.embed(photos), model.embed(photos, layer="e6"))
    mean = model.embed(photos, layer="e2", pool="mean")
    np.testing.assert_allclose(mean, expected["e2"].mean((2, 3)), rtol=1e-4, atol=1e-5)
    highest = model.embed(photos, layer="e2", pool="max")
    np.testing.assert_allclose(highest, expected["e2"].amax((2, 3)), rtol=1e-4, atol=1e-5)
    length = np.linalg.norm(model.embed(photos, normalize=True), axis=1)
    np.testing.assert_allclose(length, 1, rtol=1e-5)
    assert model.embed([]).shape == (0, 8)


def test_files_and_images_of_pillow_are_arrays_too(model: api.Model, tmp_path: Path) -> None:
    image = photographs()[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = model.embed([image])
    for same in (Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(model.embed([same]), expected)
    with pytest.raises(api.UserError, match=r"No such file"):
        model.embed([tmp_path / "b.png"])
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(api.UserError, match=r"images\[0\] is '.*b.png': not an image"):
        model.embed([tmp_path / "b.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "conv5"}, "layer is 'conv5'; preset inpaint has e1, e2"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    model: api.Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(api.UserError, match=message):
        model.embed(photographs()[:1], **arguments)
    with pytest.raises(api.UserError, match=r"images\[1\] has shape \(9, 9\) and type float64"):
        model.embed([photographs()[0], np.zeros((9, 9))])


def test_what_cannot_be_filled_is_refused(model: api.Model) -> None:
    image = photographs()[0]
    with pytest.raises(api.UserError, match="there are 1 images and 0 masks"):
        model.fill([image], [])
    with pytest.raises(api.UserError, match=r"masks\[0\] has shape \(3, 3\); its image is"):
        model.fill([image], [np.zeros((3, 3), bool)])
    with pytest.raises(api.UserError, match=r"masks\[0\] has 3 values of type int64"):
        model.fill([image], [np.arange(128 * 128).reshape(128, 128) % 3])


@pytest.mark.slow
def test_from_images_to_features_in_five_lines(tmp_path: Path) -> None:
    settings = {"batch_size": 16, "bottleneck": 64, "validation_images": 16, "log_every": 5}
    model = api.pretrain(steps=4, store=tmp_path, checkpoint_every=2, **settings)
    assert model.run_id is not None and "psnr_hole" in model.metrics
    again = api.load(model.run_id, store=tmp_path)
    images = [draw_image(1, 140, 150)]
    np.testing.assert_array_equal(again.embed(images), model.embed(images))
    (stage,) = (tmp_path / "pretrain").iterdir()
    assert api.load(stage, store=tmp_path).run_id == model.run_id

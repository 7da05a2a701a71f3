"""Weights to start from: every kind of reference, renames, and a report of what fits."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from model_helpers import SMALL, save_small_model

from ce_model.networks import build_generator
from pipelines.data.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.initial import InitialWeights, find_initial, read_initial, write_initial
from pipelines.pretrain.key import pretrain_key


def own_state(seed: int = 3) -> dict[str, torch.Tensor]:
    return dict(build_generator(SMALL, generator=torch.Generator().manual_seed(seed)).state_dict())


def find(ref: Path | str, folder: Path, *renames: str) -> InitialWeights:
    return find_initial(
        str(ref), renames, store=str(folder), tracking_uri=f"sqlite:///{folder}/m.db"
    )


def save(state: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_file_of_a_state_dict_is_loaded_whole(name: str, tmp_path: Path) -> None:
    state = own_state()
    report = write_initial(find(save(state, tmp_path / name), tmp_path), SMALL, str(tmp_path / "s"))
    loaded = read_initial(str(tmp_path / "s"))
    assert f"{len(state)} of {len(state)} tensors loaded" in report
    assert "missing" not in report and "unexpected" not in report
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_model_folder_is_loaded(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model", seed=3)
    write_initial(find(folder, tmp_path), SMALL, str(tmp_path / "s"))
    assert torch.equal(
        read_initial(str(tmp_path / "s"))["encoder.e1.0.weight"], own_state()["encoder.e1.0.weight"]
    )


def test_names_are_mapped_and_what_does_not_fit_is_told(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in own_state().items()}
    first, second = "module.encoder.e1.0.weight", "module.encoder.e2.0.weight"
    state["module.more"] = torch.zeros(1)
    state[second] = torch.zeros(1, 2)
    left = state.pop(first)
    path = save({"state_dict": state}, tmp_path / "w.pt")
    report = write_initial(find(path, tmp_path, "module.="), SMALL, str(tmp_path / "s"))
    assert left.numel()
    assert "; 1 missing, so drawn anew (encoder.e1.0.weight)" in report
    assert "; 1 unexpected, so ignored (more)" in report
    assert "1 of another shape, so drawn anew (encoder.e2.0.weight (1, 2) for (" in report
    assert read_initial(str(tmp_path / "s")).keys() == own_state().keys() - {
        "encoder.e1.0.weight", "encoder.e2.0.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "renames", "message"),
    [
        ({"other.weight": torch.zeros(1)}, (), "0 of .* tensors loaded.*Nothing fits"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, ("a=c", "b=c"), "two tensors .* name 'c'"),
        ({"step": 3}, (), "holds no plain state dict"),
        ({"a": torch.zeros(1)}, ("a",), "init_map has 'a'; each must be OLD=NEW"),
    ],
)
def test_what_cannot_be_used_is_one_message(
    state: dict[str, Any], renames: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        write_initial(find(path, tmp_path, *renames), SMALL, str(tmp_path / "s"))


@pytest.mark.parametrize("data", [b"", b"no weights", b"PK\x03\x04cut"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_holds_no_weights_is_one_message(
    name: str, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"init is '.*', which "):
        find(tmp_path / name, tmp_path).tensors()
    with pytest.raises(UserError, match="where there is no file"):
        find(tmp_path / "absent.pt", tmp_path)


def test_weights_that_are_drawn_are_part_of_the_key(dataset_uri: str) -> None:
    manifest = read_manifest(dataset_uri)

    def key(**changes: Any) -> str:
        return pretrain_key(PretrainConfig(**changes), manifest)

    for preset, usual, other in (("features", "kmeans", "random"), ("alexnet", "random", "kmeans")):
        assert key(preset=preset) == key(preset=preset, init=usual)
        assert key(preset=preset) != key(preset=preset, init=other)
    sibling = {"preset": "features", "pretext": "relative_position"}
    assert key(**sibling) == key(**sibling, init="random") != key(**sibling, init="kmeans")
    backbone = {"preset": "features", "encoder": "resnet18"}
    assert key(**backbone) == key(**backbone, init="random") != key(**backbone, init="kmeans")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "kmeans"}, "init is kmeans with preset inpaint; .* presets alexnet and features"),
        ({"init": "random", "init_map": ("a=b",)}, "init_map is .* with init random; it renames"),
        ({"init_map": ("a=b",)}, "init_map is .* with init None; it renames"),
    ],
)
def test_what_cannot_be_drawn_is_one_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings)


def test_other_weights_and_other_names_are_another_training(tmp_path: Path) -> None:
    one, two = (save(own_state(seed), tmp_path / f"{seed}.safetensors") for seed in (1, 2))
    found = [find(one, tmp_path), find(two, tmp_path), find(one, tmp_path, "a=b")]
    keys = [repr(weights.in_key) for weights in found]
    assert len(set(keys)) == 3
    assert str(tmp_path) not in "".join(keys)

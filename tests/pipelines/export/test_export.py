"""The exported encoder: three forms that agree with the model, and a loader that refuses."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import default_objective
from pipelines import storage
from pipelines.errors import UserError
from pipelines.export import run
from pipelines.export.run import ExportConfig, export_encoder, load_encoder
from pipelines.models import files

SMALL = NetworkConfig(preset="inpaint", bottleneck=8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exported(folder: Path, network: NetworkConfig = SMALL) -> tuple[torch.nn.Module, Path]:
    """An encoder whose batch norm is anything but neutral, and its export."""
    generator = build_generator(network, generator=seeded(1))
    with torch.no_grad():
        for name, buffer in generator.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=seeded(2))
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=seeded(3))
    files.save_model(str(folder / "model"), generator, network, default_objective(network), {})
    export_encoder(
        ExportConfig(
            model=str(folder / "model"), output=str(folder / "out"), store=str(folder / "store")
        )
    )
    return generator.eval().encoder, folder / "out"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    return exported(tmp_path_factory.mktemp("export"))


@torch.inference_mode()
def test_every_form_gives_the_features_of_the_model(small: tuple[torch.nn.Module, Path]) -> None:
    encoder, out = small
    x = torch.rand(5, 3, 128, 128, generator=seeded(4)) * 2 - 1  # another batch size than exported
    expected = encoder(x).numpy()
    session = onnxruntime.InferenceSession(str(out / "encoder.onnx"))
    program = torch.export.load(out / "encoder.pt2").module()
    for found in (
        load_encoder(str(out))(x).numpy(),
        session.run(["features"], {"picture": x.numpy()})[0],
        program(x).numpy(),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_no_batch_norm_is_left(small: tuple[torch.nn.Module, Path]) -> None:
    names = safetensors.torch.load_file(small[1] / "encoder.safetensors").keys()
    assert not [name for name in names if "running" in name]
    assert "e6.1.bias" in names


@pytest.mark.slow
def test_the_alexnet_encoder_exports_too(tmp_path: Path) -> None:
    _, out = exported(tmp_path, NetworkConfig(preset="alexnet", output="full", norm="lrn"))
    assert storage.read_json(str(out / "encoder.json"))["output"] == ["N", 256, 6, 6]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_the_loader_refuses_keys_that_do_not_fit(
    small: tuple[torch.nn.Module, Path], tmp_path: Path, change: str
) -> None:
    tensors = safetensors.torch.load_file(small[1] / "encoder.safetensors")
    if change == "missing":
        del tensors["e6.1.bias"]
    elif change == "unexpected":
        tensors["e7.weight"] = torch.zeros(1)
    else:
        tensors["e6.1.bias"] = torch.zeros(9)
    safetensors.torch.save_file(tensors, tmp_path / "encoder.safetensors")
    description = storage.read_json(str(small[1] / "encoder.json"))
    digest = storage.sha256_of(tmp_path / "encoder.safetensors")
    description["files"]["encoder.safetensors"] = digest
    storage.publish_json(str(tmp_path / "encoder.json"), description)
    with pytest.raises(UserError, match=r"do not fit the network.*e[67]\."):
        load_encoder(str(tmp_path))


def test_the_loader_refuses_altered_weights(
    small: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    for name in ("encoder.safetensors", "encoder.json"):
        (tmp_path / name).write_bytes((small[1] / name).read_bytes())
    data = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"not the file that encoder.json names"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}'])
def test_the_loader_refuses_a_cut_description(
    small: tuple[torch.nn.Module, Path], tmp_path: Path, content: str
) -> None:
    (tmp_path / "encoder.safetensors").write_bytes((small[1] / "encoder.safetensors").read_bytes())
    (tmp_path / "encoder.json").write_text(content)
    with pytest.raises(UserError, match=r"encoder\.json in .* was altered or cut"):
        load_encoder(str(tmp_path))


def test_what_is_no_export_and_what_is_one_already_are_refused(
    small: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is not an exported encoder"):
        load_encoder(str(tmp_path))
    with pytest.raises(UserError, match="holds an export already"):
        export_encoder(ExportConfig(model="any", output=str(small[1])))


def test_the_home_folder_is_meant_everywhere_and_a_bucket_must_have_a_name(
    small: tuple[torch.nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = str(small[1].parent / "model")
    export_encoder(ExportConfig(model=model, output="~/e", store=str(tmp_path / "store")))
    load_encoder(str(tmp_path / "home" / "e"))
    with pytest.raises(UserError, match="names no bucket"):
        export_encoder(ExportConfig(model=model, output="s3://", store=str(tmp_path / "store")))
    assert not (tmp_path / "s3:").exists() and not (tmp_path / "~").exists()


def test_a_form_that_differs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_run_onnx", lambda path, x: np.ones((len(x), 8), np.float32))
    with pytest.raises(UserError, match=r"encoder.onnx differs from the model by"):
        exported(tmp_path)
    assert not (tmp_path / "out").exists()

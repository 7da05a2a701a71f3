"""The exported encoder: three forms that agree with the model, and a loader that refuses."""

import json
import subprocess
import sys
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
from pipelines.export import run, standalone
from pipelines.export.config import ExportConfig
from pipelines.export.layers import UndescribedLayerError, describe_layers
from pipelines.export.run import export_encoder, fold_encoder, load_encoder
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
        session.run(["features"], {"image": x.numpy()})[0],
        program(x).numpy(),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# What a stranger has: torch, and nothing of ours or of what we use to write and read the files.
STRANGER = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ce_model", "pipelines", "safetensors", "ray", "mlflow"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refusing())
sys.path.insert(0, ".")
"""


def as_a_stranger(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER + program],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stranger_runs_the_program_of_the_card_with_torch_alone(
    small: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    encoder, out = small
    card = (out / "README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0]
    pixels = torch.randint(256, (2, 128, 128, 3), generator=seeded(5), dtype=torch.uint8)
    torch.save(pixels, tmp_path / "pixels.pt")
    program += (
        f"images = torch.load({str(tmp_path / 'pixels.pt')!r})\n"
        "x = encoder.preprocess(images)\n"
        "found = [network(x), encoder.features(network, x)['e5']]\n"
        f"torch.save(found, {str(tmp_path / 'f.pt')!r})\n"
        "print(tuple(features.shape), network.training)\n"
    )
    assert as_a_stranger(program, out) == "(2, 8) False\n"
    found, of_e5 = torch.load(tmp_path / "f.pt")
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = encoder(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(of_e5, encoder[:5](x), rtol=1e-4, atol=1e-4)


def test_the_script_for_strangers_refuses_altered_weights(
    small: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    for name in ("encoder.py", "encoder.json", "encoder.safetensors"):
        (tmp_path / name).write_bytes((small[1] / name).read_bytes())
    with (tmp_path / "encoder.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(ValueError, match=r"is not the one of encoder.json"):
        standalone.load(tmp_path)


def test_the_script_for_strangers_is_short() -> None:
    assert len(Path(standalone.__file__).read_text().splitlines()) <= 80


def test_the_card_lists_every_file_by_its_digest(small: tuple[torch.nn.Module, Path]) -> None:
    card = (small[1] / "README.md").read_text()
    for name in ("encoder.safetensors", "encoder.onnx", "encoder.pt2", "encoder.py"):
        assert f"| `{name}` | `{storage.sha256_of(small[1] / name)}` |" in card


@pytest.mark.parametrize("norm", ["batch", "lrn", "none"])
def test_described_layers_are_built_again_as_they_were(norm: str) -> None:
    network = NetworkConfig(preset="alexnet", output="full", norm=norm, groups=2)
    folded = fold_encoder(build_generator(network, generator=seeded(1)).encoder)
    described = json.loads(json.dumps(describe_layers(folded)))
    again = standalone.build(described)
    again.load_state_dict(folded.state_dict())
    x = torch.rand(1, 3, 227, 227, generator=seeded(2)) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(again.eval()(x), folded(x))


def test_a_layer_that_cannot_be_described_is_named() -> None:
    with pytest.raises(UndescribedLayerError, match="layer 1 is a Sigmoid"):
        describe_layers(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sigmoid()))
    with pytest.raises(ValueError, match="layer 0 is a 'Sigmoid'; known are Conv2d"):
        standalone.build([{"name": "0", "kind": "Sigmoid", "arguments": {}}])


def test_no_batch_norm_is_left(small: tuple[torch.nn.Module, Path]) -> None:
    names = safetensors.torch.load_file(small[1] / "encoder.safetensors").keys()
    assert not [name for name in names if "running" in name]
    assert "e6.1.bias" in names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "output", "has_script"),
    [
        (NetworkConfig(preset="alexnet", output="full", norm="lrn"), [256, 6, 6], True),
        (NetworkConfig(preset="features", output="full"), [256, 4, 4], True),
        (NetworkConfig(preset="unet", output="full"), [256, 8, 8], False),
    ],
    ids=lambda value: getattr(value, "preset", ""),
)
def test_the_encoder_of_every_preset_exports(
    network: NetworkConfig, output: list[int], has_script: bool, tmp_path: Path
) -> None:
    """Each form is compared before it is published; unet's layers are not those of torch."""
    _, out = exported(tmp_path, network)
    assert storage.read_json(str(out / "encoder.json"))["output"] == ["N", *output]
    assert (out / "encoder.onnx").exists() and (out / "encoder.pt2").exists()
    assert (out / "encoder.py").exists() == has_script
    card = (out / "README.md").read_text("utf-8")
    assert ("import encoder" in card) == has_script
    program = card.split("```python\n")[1].split("```")[0] + "print(tuple(features.shape))\n"
    assert as_a_stranger(program, out) == f"{(2, *output)}\n"


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


@pytest.mark.parametrize("content", ["", "[]", "null", "5", '"text"', '{"files": {}}'])
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
    (tmp_path / "encoder.json").write_text('{"files": {"model.safetensors": "0"}, "network": {}}')
    with pytest.raises(UserError, match=r"model\.safetensors of a backbone"):
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


def test_of_two_exports_into_one_folder_the_second_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    run._publish_new(str(tmp_path / "encoder.safetensors"), b"first")
    with pytest.raises(UserError, match=r"encoder\.safetensors' is there already.*--output"):
        run._publish_new(str(tmp_path / "encoder.safetensors"), b"second")
    assert (tmp_path / "encoder.safetensors").read_bytes() == b"first"

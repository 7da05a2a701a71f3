"""Backbones of transformers as encoders: drawn from a seed, trained, written, read again."""

import json
from pathlib import Path

import pytest
import torch

from ce_model import training
from ce_model.networks import NetworkConfig
from ce_model.training import Networks, default_objective, default_optimization
from ce_model.transfer.initialisation import calibrate, fold
from pipelines.errors import UserError
from pipelines.export.config import ExportConfig
from pipelines.export.run import export_encoder, load_encoder
from pipelines.models import backbones, files
from pipelines.models.backbones import build_network
from pipelines.models.encoder_names import KNOWN, require_encoder
from pipelines.pretrain.initial import find_initial, write_initial

pytest.importorskip("transformers")
NAMES = ["resnet18", "convnextv2_atto"]


def config(name: str, **more: str) -> NetworkConfig:
    return NetworkConfig(preset="features", output="full", encoder=name, **more)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 128, 128, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_trained_written_and_read_by_transformers(name: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    network = build_network(config(name), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    networks = Networks(network.train(), None)
    optimization = default_optimization(config(name), 4)
    optimizers = training.make_optimizers(networks, 1e-3, 0.0, optimization)
    image = ((images() + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
    hidden = torch.zeros(2, 128, 128, dtype=torch.bool)
    hidden[:, :64, 32:] = True
    objective = default_objective(config(name))
    found = training.train_step(
        networks, optimizers, image, hidden,
        network=config(name), objective=objective, dtype=torch.float32,
    )  # fmt: skip
    assert found["nonfinite"] == 0
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)

    info = {"strategy": "grid_60", "steps": 1, "seed": 1}
    files.save_model(str(tmp_path / "model"), network, config(name), objective, info)
    loaded = files.load_model(str(tmp_path / "model")).generator
    x = images()
    with torch.no_grad():
        expected = network.eval().encoder(x)
        torch.testing.assert_close(loaded.encoder(x), expected, atol=1e-4, rtol=1e-4)
        names = backbones.save_pretrained(loaded.encoder, tmp_path / "hf")
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} == set(names)
        torch.testing.assert_close(
            backbones.run_pretrained(tmp_path / "hf", x), expected, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(fold(loaded.encoder)(x), expected, atol=1e-4, rtol=1e-4)
        calibrate(loaded.encoder, [x])
    initial = find_initial(f"hf:{tmp_path / 'hf'}", (), store=str(tmp_path), tracking_uri="")
    report = write_initial(initial, config(name), str(tmp_path / "stage"))
    assert "tensors loaded" in report and "normalised" not in report
    kept = {k.removeprefix("encoder."): v for k, v in initial.tensors().items()}
    assert kept.keys() == network.encoder.state_dict().keys()
    for key, value in kept.items():
        torch.testing.assert_close(value, network.encoder.state_dict()[key])


def test_weights_follow_from_the_seed() -> None:
    first, same, other = (
        build_network(config("resnet18"), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    pairs = zip(first.state_dict().values(), same.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    name = "encoder.body.model.embedder.embedder.convolution.weight"
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("name", ["resnet18", "convnextv2_atto"])
def test_what_is_left_of_a_backbone_does_not_depend_on_hidden_pixels(name: str) -> None:
    encoder = build_network(config(name)).encoder.train()
    hidden = torch.zeros(2, 8, 8, dtype=torch.bool)
    hidden[:, ::2, 1:] = True
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    x = images()
    with torch.no_grad():
        one = encoder.visible_maps(x, hidden)
        two = encoder.visible_maps(torch.where(pixels, 5.0, x), hidden)
        whole = encoder.visible_maps(x, torch.zeros_like(hidden))
        plain = encoder.plain().train().maps(x)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_names_that_are_no_encoder_are_refused() -> None:
    for name in ("alexnet", *KNOWN, "regnet"):
        require_encoder(name)
    with pytest.raises(UserError, match=r"encoder is 'resnet19'; it must be alexnet, resnet18"):
        require_encoder("resnet19")
    with pytest.raises(UserError, match=r"'bit', which cannot be used with masked layers: a Bit"):
        build_network(config("bit"))
    with pytest.raises(UserError, match="'bert', which cannot be used"):
        build_network(config("bert"))


def test_images_normalised_otherwise_are_told(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    )
    assert "image_mean [0.485, 0.456, 0.406]" in backbones.note_of_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"must be a folder on this machine with config\.json"):
        backbones.digest_of_folder(str(tmp_path))


@pytest.mark.slow
def test_an_exported_backbone_is_loaded_by_strangers(tmp_path: Path) -> None:
    network = build_network(config("resnet18"), generator=torch.Generator().manual_seed(1))
    info = {"strategy": "grid_60", "steps": 1, "seed": 1}
    objective = default_objective(config("resnet18"))
    files.save_model(str(tmp_path / "model"), network, config("resnet18"), objective, info)
    out = tmp_path / "out"
    export_encoder(
        ExportConfig(model=str(tmp_path / "model"), output=str(out), store=str(tmp_path))
    )
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "encoder.json", "encoder.onnx", "encoder.pt2",
        "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    x = images()
    with torch.no_grad():
        expected = network.eval().encoder(x)
        torch.testing.assert_close(backbones.run_pretrained(out, x), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(load_encoder(str(out))(x), expected, atol=1e-4, rtol=1e-4)
    assert 'AutoModel.from_pretrained(".")' in (out / "README.md").read_text()

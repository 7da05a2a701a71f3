"""Backbones of Hugging Face transformers as encoders of preset `features`; nothing is downloaded.

A network of any `encoder` is built here: alexnet by `ce_model` alone, any other by transformers, an
optional dependency that is imported when it is asked for.

Source: Wolf et al., "Transformers", EMNLP 2020, arXiv:1910.03771.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ce_model import networks
from ce_model.hierarchy import Backbone
from ce_model.masked_conversion import UnsuitedLayerError
from ce_model.network_config import ALEXNET, FEATURES_SIDE, Layers, NetworkConfig
from ce_model.networks import ContextEncoder
from pipelines import storage
from pipelines.errors import UserError
from pipelines.models.encoder_names import KNOWN, quiet_transformers, require_encoder

FOLDER = "hf:"  # before a folder that transformers wrote
WEIGHTS = (".safetensors", ".bin")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
HALF = [0.5, 0.5, 0.5]  # mean and deviation that bring colours to [-1, 1]


class HiddenStates(nn.Module):
    """A model of transformers as a network that gives its maps, one per scale, fine to coarse.

    Weights that no map depends on, such as those behind a final pooling, are frozen.

    Shape:
        x: float (B, 3, H, W); result: float (B, C, H / stride, W / stride) each.
    """

    def __init__(self, model: nn.Module) -> None:
        """`model` takes pixel_values and gives hidden_states."""
        super().__init__()
        self.model = model
        weights = list(model.parameters())
        maps = self.eval()(torch.zeros(1, 3, FEATURES_SIDE, FEATURES_SIDE))
        if maps:
            total = torch.stack([found.sum() for found in maps]).sum()
            found = torch.autograd.grad(total, weights, allow_unused=True)
            for weight, gradient in zip(weights, found, strict=True):
                weight.requires_grad_(gradient is not None)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last map of each scale below that of the image."""
        states = self.model(pixel_values=x, output_hidden_states=True).hidden_states or ()
        by_side = {s.shape[-1]: s for s in states if s.ndim == 4 and s.shape[-1] < x.shape[-1]}
        return list(by_side.values())


def build_network(
    config: NetworkConfig, *, generator: torch.Generator | None = None
) -> ContextEncoder:
    """`networks.build_generator` for any encoder; the weights follow from the generator.

    Raises:
        UserError: the encoder is no convolutional backbone, or transformers is not installed.
    """
    generator = generator or torch.Generator().manual_seed(0)
    backbone = None
    if config.encoder != ALEXNET:
        seed = int(torch.randint(2**62, (), generator=generator))
        backbone = _backbone(config.encoder, config.layers, seed)
    return networks.build_generator(config, generator=generator, backbone=backbone)


def _backbone(name: str, layers: Layers, seed: int) -> Backbone:
    require_encoder(name)
    kind, settings = KNOWN.get(name, (name, {}))
    problem = f"encoder is '{name}', which cannot be used"
    with quiet_transformers() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = transformers.AutoModel.from_config(
                transformers.CONFIG_MAPPING[kind](**settings)
            )
            return Backbone(HiddenStates(model), layers)
        except UnsuitedLayerError as error:
            raise UserError(
                f"{problem} with masked layers: {error}; add --layers dense, or take another "
                "encoder"
            ) from None
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            # Of a model that reads no images, or gives no maps of them.
            raise UserError(
                f"{problem}: {error}; take one of {', '.join(KNOWN)}, or another convolutional "
                "model type of transformers"
            ) from None


def save_pretrained(backbone: Backbone, folder: Path) -> list[str]:
    """Write an encoder so that `AutoModel.from_pretrained(folder)` loads it; the files' names.

    The last hidden state of what is loaded is the encoder's last map.
    """
    body = backbone.plain().body
    assert isinstance(body, HiddenStates)
    with quiet_transformers():
        body.model.eval().save_pretrained(folder)  # type: ignore[operator]
    side = FEATURES_SIDE
    preprocessor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "crop_pct": 1.0,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": HALF,
        "image_std": HALF,
    }
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2))
    return sorted(path.name for path in folder.iterdir())


def run_pretrained(folder: Path, x: Tensor) -> Tensor:
    """What a stranger gets from such a folder: the last hidden state."""
    with quiet_transformers() as transformers:
        model = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
        found: Tensor = model(pixel_values=x).last_hidden_state
    return found


def digest_of_folder(folder: str) -> str:
    """Names the weights of a folder that transformers wrote.

    Raises:
        UserError: it is none.
    """
    place = Path(folder)
    weights = sorted(path for path in place.glob("*") if path.suffix in WEIGHTS)
    if not (place / CONFIG).is_file() or not weights:
        raise UserError(
            f"init is '{FOLDER}{folder}'; it must be a folder on this machine with {CONFIG} and "
            "model.safetensors, as save_pretrained of transformers writes it"
        )
    return storage.content_key([storage.sha256_of(path) for path in weights])


def read_folder(folder: str) -> dict[str, Tensor]:
    """The weights of a folder that transformers wrote, named as in a network of ours."""
    with quiet_transformers() as transformers:
        try:
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"init is '{FOLDER}{folder}', which transformers cannot load: {error}"
            ) from None
    return {f"encoder.body.model.{name}": value for name, value in model.state_dict().items()}


def note_of_folder(folder: str) -> str:
    """What has to be said of how its images were normalised; empty where it is as here."""
    place = Path(folder, PREPROCESSOR)
    if not place.is_file():
        return f"; there is no {PREPROCESSOR}: here colours are brought to [-1, 1]"
    found = json.loads(place.read_text())
    given = found.get("image_mean"), found.get("image_std")
    if given == (HALF, HALF):
        return ""
    return (
        f"; it was trained with image_mean {given[0]} and image_std {given[1]}: here colours are "
        "brought to [-1, 1], to which the first layers have to adapt"
    )

"""Which context encoder: its settings and the sides of its images, without the layers.

Nothing here imports torch, so that settings are read, checked and explained (`--help`) in a moment.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Preset = Literal["alexnet", "inpaint", "unet", "features"]
Output = Literal["center", "full"]
Target = Literal["pixels", "normalized", "hog"]
Layers = Literal["masked", "dense"]
Pretext = Literal["inpainting", "relative_position", "exemplar", "transformation"]

ALEXNET_SIDE = 227
INPAINT_SIDE = 128
FEATURES_SIDE = 128
CENTER_SIDE = 64
DROPOUT = 0.5
BOTTLENECK = 4000
ALEXNET = "alexnet"
INPAINTING: Pretext = "inpainting"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which context encoder is trained."""

    preset: Preset = "inpaint"
    """alexnet learns features from 227 px images, as in the paper; features learns better ones from
    128 px images; inpaint fills holes in 128 px images; unet fills any hole in an image of any size
    and is trained on 128 px."""
    output: Output = "center"
    """What is predicted: the 64 px centre or the full image; only inpaint predicts a centre."""
    norm: Literal["batch", "lrn", "none"] = "batch"
    """Normalisation of alexnet; lrn is the layout of the reference CaffeNet."""
    groups: Literal[1, 2] = 1
    """Groups of conv2, conv4 and conv5 of alexnet and features; 2 in the reference CaffeNet."""
    dropout: float = DROPOUT
    """Dropout after the channel-wise layer of alexnet."""
    bottleneck: int = BOTTLENECK
    """Units of the bottleneck of inpaint."""
    target: Target = "hog"
    """What features predicts of a hidden cell: its colours, its colours normalised, or histograms
    of its gradients."""
    layers: Layers = "masked"
    """Whether the encoder of features computes on visible cells alone while it is trained."""

    encoder: str = ALEXNET
    """Encoder of features: alexnet, or the name of a backbone (resnet18, resnet50,
    convnextv2_atto and others; see docs/features.md)."""
    antialias: bool = False
    """Whether unet smooths what it adds over 3 x 3 px, so that it cannot learn a pattern of every
    other pixel; no in models of 0.1."""
    pretext: Pretext = INPAINTING
    """What the encoder of features learns from: holes, or a sibling pretext, which shows it whole
    views of an image and asks where, which or how (`ce_model.pretexts`)."""
    exemplar_classes: int = 0
    """Images that pretext exemplar tells apart, each a class; 0 for the others."""

    def __post_init__(self) -> None:
        """Refuse values out of range and settings that the preset would ignore."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"network.dropout is {self.dropout}; it must be 0 or more, below 1")
        if self.bottleneck < 1:
            raise ValueError(f"network.bottleneck is {self.bottleneck}; it must be 1 or more")
        if self.preset != "inpaint":
            if self.output != "full":
                raise ValueError(
                    f"network.output is {self.output}; it must be full with network.preset "
                    f"{self.preset}, which predicts the whole image"
                )
            self._refuse_unused("bottleneck", self.bottleneck, BOTTLENECK)
        if self.preset != "alexnet":
            self._refuse_unused("norm", self.norm, "batch")
            self._refuse_unused("dropout", self.dropout, DROPOUT)
        if self.preset not in ("alexnet", "features"):
            self._refuse_unused("groups", self.groups, 1)
        if self.preset != "unet":
            self._refuse_unused("antialias", self.antialias, False)
        if self.preset != "features":
            self._refuse_unused("target", self.target, "hog")
            self._refuse_unused("layers", self.layers, "masked")
            self._refuse_unused("encoder", self.encoder, ALEXNET)
            self._refuse_unused("pretext", self.pretext, INPAINTING)
        self._check_pretext()
        if self.encoder != ALEXNET and self.groups != 1:
            raise ValueError(
                f"network.groups is {self.groups}; it must stay 1 with network.encoder "
                f"{self.encoder}, which has its own"
            )

    def _check_pretext(self) -> None:
        """Refuse what a sibling pretext, which hides nothing, would ignore."""
        if self.pretext != INPAINTING and (self.layers != "dense" or self.target != "hog"):
            raise ValueError(
                f"network.layers is {self.layers} and network.target {self.target}; they must be "
                f"dense and hog with network.pretext {self.pretext}, which hides nothing and "
                "predicts no cell"
            )
        if (self.pretext == "exemplar") != (self.exemplar_classes > 0):
            raise ValueError(
                f"network.exemplar_classes is {self.exemplar_classes} with network.pretext "
                f"{self.pretext}; it must be 1 or more with exemplar, and 0 with the others"
            )

    def _refuse_unused(self, name: str, value: object, default: object) -> None:
        if value != default:
            raise ValueError(
                f"network.{name} is {value}; it must stay {default} with network.preset "
                f"{self.preset}, which does not use it"
            )


def input_side(config: NetworkConfig) -> int:
    """Side of the square image the encoder reads in training, pixels; see `takes_any_size`."""
    return ALEXNET_SIDE if config.preset == "alexnet" else INPAINT_SIDE


def output_side(config: NetworkConfig) -> int:
    """Side of the square the decoder predicts, pixels."""
    return CENTER_SIDE if config.output == "center" else input_side(config)


def takes_any_size(config: NetworkConfig) -> bool:
    """Whether the network fills any hole in an image of any height and width.

    Such a network reads the mask as a fourth channel.
    """
    return config.preset == "unet"


def predicts_images(config: NetworkConfig) -> bool:
    """Whether the network fills holes with colours; `features` only learns from them."""
    return config.preset != "features"


def describe_training(
    preset: str, encoder: str, pretext: str, strategy: str, target: str, layers: str
) -> str:
    """What a training is about: `unet, free_form holes`, `features (resnet18), relative position`.

    Encoder, target and layers of preset features are named where they are not the usual ones.
    """
    network = preset if encoder == ALEXNET else f"{preset} ({encoder})"
    if pretext != INPAINTING:
        return f"{network}, {pretext.replace('_', ' ')}"
    parts = [network, f"{strategy} holes"]
    if preset == "features":
        parts += [target] if target != NetworkConfig.target else []
        parts += [f"{layers} layers"] if layers != NetworkConfig.layers else []
    return ", ".join(parts)


def about_training(network: NetworkConfig, strategy: str) -> str:
    """What a training of this network on these holes is about, see `describe_training`."""
    named = (network.preset, network.encoder, network.pretext)
    return describe_training(*named, strategy, network.target, network.layers)


# What came after the first stored models: left out of keys at these values, so that keys stay.
LATER = {
    "target": "hog",
    "layers": "masked",
    "encoder": ALEXNET,
    "antialias": False,
    "pretext": INPAINTING,
    "exemplar_classes": 0,
}


def network_in_key(config: NetworkConfig) -> dict[str, Any]:
    """The settings as they stand in a content key."""
    return {k: v for k, v in asdict(config).items() if (k, v) not in LATER.items()}

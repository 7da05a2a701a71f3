"""The two context encoders of the paper and their discriminator; every network is built here.

Preset `alexnet` learns features: a 227 px image through AlexNet to pool5, a channel-wise
fully-connected layer, a 1x1 convolution and five up-convolutions back to 227 px. Preset `inpaint`
fills holes: a 128 px image through a 4000-unit bottleneck to the 64 px centre or the whole 128 px
image, with a DCGAN discriminator. Two presets are not the paper's: `unet` fills any hole in an
image of any size (see `unet`), and `features` learns features from 128 px images (see
`feature_networks`), from holes or from a sibling pretext (see `pretexts`). Images are RGB in
[-1, 1].

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, sections 3 and 5 and figure 9; layer tables of `train.lua` and
`train_random.lua`, github.com/pathak22/context-encoder, commit 68abd11. Where the paper is silent
(activation between the channel-wise layer and the 1x1 convolution, 5x5 up-convolutions, initial
weights of `alexnet`) the choice is marked below.
"""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from ce_model import unet
from ce_model.feature_networks import TOKEN_STD, CellDecoder, encode_cells, padded_alexnet
from ce_model.hierarchy import Backbone, HierarchicalDecoder
from ce_model.layers import BilinearResize, ChannelwiseLinear, SpectralConv2d, ZeroConv2d

# A network and its settings are imported together; the settings alone need no torch.
from ce_model.network_config import ALEXNET as ALEXNET
from ce_model.network_config import ALEXNET_SIDE as ALEXNET_SIDE
from ce_model.network_config import BOTTLENECK as BOTTLENECK
from ce_model.network_config import CENTER_SIDE as CENTER_SIDE
from ce_model.network_config import DROPOUT as DROPOUT
from ce_model.network_config import INPAINT_SIDE as INPAINT_SIDE
from ce_model.network_config import INPAINTING as INPAINTING
from ce_model.network_config import NetworkConfig as NetworkConfig
from ce_model.network_config import Output as Output
from ce_model.network_config import Preset as Preset
from ce_model.network_config import input_side as input_side
from ce_model.network_config import output_side as output_side
from ce_model.network_config import predicts_images as predicts_images
from ce_model.network_config import takes_any_size as takes_any_size
from ce_model.patch_discriminator import PatchDiscriminator
from ce_model.pretexts.questions import PretextHead, map_shape, questions_of

Network = TypeVar("Network", bound=nn.Module)

POOL5_CHANNELS, POOL5_SIDE = 256, 6
DCGAN_STD = 0.02  # standard deviation of initial weights, train.lua


class ContextEncoder(nn.Module):
    """Encoder from the visible context to features, decoder from features to hidden pixels.

    Shape:
        context: float (B, 3, S, S) in [-1, 1], S = input_side; result: float (B, 3, T, T) in the
        same range, T = output_side (alexnet and unet have a linear last layer and may leave the
        range). unet: context (B, 4, H, W), result (B, 3, H, W). features: cells bool (B, 8, 8),
        True where hidden, and result float (B, D, 8, 8); see `feature_targets`. With a sibling
        pretext: context (B, V, 3, s, s), and result (B, Q, answers); see `pretexts.questions`.
    """

    def __init__(self, config: NetworkConfig, backbone: Backbone | None = None) -> None:
        """Build the layers; their weights are drawn by `init_weights`, but those of a backbone."""
        super().__init__()
        self.config = config
        self.encoder: nn.Sequential | Backbone
        self.decoder: nn.Module
        if config.pretext != INPAINTING:
            self.encoder = backbone or padded_alexnet(config.groups)
            asked = questions_of(config)
            self.decoder = PretextHead(asked, map_shape(self.encoder, asked.side))
        elif backbone is not None:
            self.encoder = backbone
            self.decoder = HierarchicalDecoder(
                config.target, config.layers, backbone.channels, backbone.strides
            )
        elif config.preset == "alexnet":
            self.encoder, self.decoder = _alexnet_encoder(config), _alexnet_decoder(config)
        elif config.preset == "inpaint":
            self.encoder, self.decoder = _inpaint_encoder(config), _inpaint_decoder(config)
        elif config.preset == "features":
            self.encoder = padded_alexnet(config.groups)
            self.decoder = CellDecoder(config.target, config.layers)
        else:
            self.encoder, self.decoder = unet.encoder(), unet.Decoder(config.antialias)

    def forward(self, context: Tensor, cells: Tensor | None = None) -> Tensor:
        """Predict the hidden pixels, or of `features` the target of every cell."""
        prediction: Tensor
        if isinstance(self.decoder, unet.Decoder):
            prediction = self.decoder(context, self.encoder_features(context))
        elif isinstance(self.decoder, PretextHead):
            views = context.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            prediction = self.decoder(self.encoder(views))
        elif isinstance(self.decoder, CellDecoder):
            assert cells is not None, "preset features predicts hidden cells: say which"
            masked = self.config.layers == "masked"
            assert isinstance(self.encoder, nn.Sequential)
            conv5 = (
                encode_cells(self.encoder, context, cells) if masked else self.encoder[:-1](context)
            )
            prediction = self.decoder(conv5, cells)
        elif isinstance(self.encoder, Backbone):
            assert cells is not None, "preset features predicts hidden cells: say which"
            masked = self.config.layers == "masked"
            encoder = self.encoder
            maps = encoder.visible_maps(context, cells) if masked else encoder.maps(context)
            prediction = self.decoder(maps, cells)
        else:
            prediction = self.decoder(self.encoder(context))
        return prediction

    def encoder_features(self, context: Tensor) -> dict[str, Tensor]:
        """Activations by layer: conv1 to pool5 of alexnet and features, e1 to e6 (unet: e5) else.

        Convolutions are taken after their activation; e6 is (B, bottleneck). A backbone has stage1,
        stage2 and so on.
        """
        return layer_features(self.encoder, context)


def layer_features(encoder: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """`ContextEncoder.encoder_features` for an encoder alone, also one with batch norm folded."""
    if isinstance(encoder, Backbone):
        return encoder.features(x)
    features = {}
    for name, layer in encoder.named_children():
        x = layer(x)
        if name.startswith("relu"):
            features[name.replace("relu", "conv")] = x
        elif name == "pool5" or name.startswith("e"):
            features[name] = x
    return features


def build_generator(
    config: NetworkConfig,
    *,
    generator: torch.Generator | None = None,
    backbone: Backbone | None = None,
) -> ContextEncoder:
    """A context encoder with fresh weights, channels_last, on the CPU.

    Args:
        config: the network.
        generator: source of the weights; without one, a generator with seed 0.
        backbone: the encoder, weights and all, where the config names another than alexnet.

    Raises:
        ValueError: such a config, and no backbone.
    """
    if (backbone is None) != (config.encoder == ALEXNET):
        raise ValueError(
            f"network.encoder is {config.encoder}; alexnet is built here, any other one has to be "
            "given as a backbone"
        )
    # On the meta device torch neither allocates nor draws its own initial weights, so building
    # is twice as fast and leaves the global random state alone.
    with torch.device("meta"):
        network = ContextEncoder(config, backbone)
    std = DCGAN_STD if config.preset == "inpaint" else None
    return _materialise(network, std, generator)


def build_discriminator(
    config: NetworkConfig, *, generator: torch.Generator | None = None
) -> nn.Module:
    """What judges the generator's predictions. Arguments as in `build_generator`.

    For the paper's presets a DCGAN discriminator, float (B, 3, T, T) -> logits (B,), with the
    sigmoid in the loss; for unet a `PatchDiscriminator`.
    """
    if takes_any_size(config):
        with torch.device("meta"):
            judge = PatchDiscriminator()
        return _materialise(judge, None, generator)
    side = output_side(config)
    # A 128 px image gets one more 64 -> 64 layer (train_random.lua); 227 px, which the paper
    # did not make converge, gets the same stack.
    widths = [64, 128, 256, 512] if side == CENTER_SIDE else [64, 64, 128, 256, 512]
    with torch.device("meta"):
        layers = OrderedDict[str, nn.Module]()
        channels = 3
        for index, width in enumerate(widths, start=1):
            layers[f"c{index}"] = _down(channels, width, norm=index > 1)
            channels, side = width, side // 2
        # The 4x4 convolution of train.lua on a 4x4 map is this dense layer.
        layers["flatten"] = nn.Flatten()
        layers["logit"] = nn.Linear(channels * side**2, 1, bias=False)
        layers["squeeze"] = nn.Flatten(0)
        network = nn.Sequential(layers)
    return _materialise(network, DCGAN_STD, generator)


def init_weights(network: nn.Module, std: float | None, generator: torch.Generator) -> None:
    """Draw every weight anew and reset the statistics of the normalisation layers.

    Args:
        network: changed in place.
        std: N(0, std) weights and N(1, std) BatchNorm scales as in train.lua. None keeps the
            variance of the signal instead (He et al. 2015), as an AlexNet without BatchNorm needs;
            the paper does not say what it used.
        generator: the only source of randomness.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.normal_(module.weight, 1.0, std or 0.0, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, ZeroConv2d):
            nn.init.zeros_(module.weight)
            assert module.bias is not None
            nn.init.constant_(module.bias, module.value)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | ChannelwiseLinear):
            spread = std or math.sqrt(2 / _fan_in(module))
            nn.init.normal_(module.weight, 0.0, spread, generator=generator)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
            if isinstance(module, SpectralConv2d):
                nn.init.normal_(module.direction, generator=generator)
        elif isinstance(module, CellDecoder) and module.token is not None:
            nn.init.normal_(module.token, 0.0, TOKEN_STD, generator=generator)
        elif isinstance(module, HierarchicalDecoder):
            for token in module.tokens:
                nn.init.normal_(token, 0.0, TOKEN_STD, generator=generator)


def _fan_in(module: nn.Module) -> float:
    """Number of inputs that reach one output of the layer."""
    if isinstance(module, ChannelwiseLinear):
        return module.side**2
    if isinstance(module, nn.Linear):
        return module.in_features
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    taps = module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        return taps / math.prod(module.stride)  # with stride 2 an output meets every fourth tap
    return taps


def _materialise(network: Network, std: float | None, generator: torch.Generator | None) -> Network:
    """Give a network that was built on the meta device memory and weights."""
    drawn: nn.Module = network
    if isinstance(network, ContextEncoder) and isinstance(network.encoder, Backbone):
        drawn = network.decoder  # a backbone has its weights
    for module in drawn.modules():  # `to_empty` does the same and imports sympy for it: a second
        for name, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    init_weights(drawn, std, generator or torch.Generator().manual_seed(0))
    for weight in network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _alexnet_encoder(config: NetworkConfig) -> nn.Sequential:
    """AlexNet to pool5: (B, 3, 227, 227) -> (B, 256, 6, 6)."""
    # index: channels in, channels out, kernel, stride, padding, groups
    shapes = {
        1: (3, 96, 11, 4, 0, 1),
        2: (96, 256, 5, 1, 2, config.groups),
        3: (256, 384, 3, 1, 1, 1),
        4: (384, 384, 3, 1, 1, config.groups),
        5: (384, POOL5_CHANNELS, 3, 1, 1, config.groups),
    }
    layers = OrderedDict[str, nn.Module]()
    for index, (inputs, outputs, kernel, stride, padding, groups) in shapes.items():
        layers[f"conv{index}"] = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, groups=groups, bias=config.norm != "batch"
        )
        if config.norm == "batch":
            layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU(inplace=True)
        if index in (1, 2, 5):
            layers[f"pool{index}"] = nn.MaxPool2d(3, 2)
        if config.norm == "lrn" and index in (1, 2):  # after pooling, as in CaffeNet
            layers[f"norm{index}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
    return nn.Sequential(layers)


def _alexnet_decoder(config: NetworkConfig) -> nn.Sequential:
    """Channel-wise layer, 1x1 convolution, five up-convolutions, resize.

    Sides 6, 11, 21, 41, 81, 161, 227. ReLU and dropout after the channel-wise layer follow fc6 of
    AlexNet; a 5x5 kernel is one of two that give these sides.
    """
    bias = config.norm != "batch"
    widths = [POOL5_CHANNELS, 128, 64, 64, 32, 3]
    layers = OrderedDict[str, nn.Module]()
    layers["channelwise"] = nn.Sequential(
        ChannelwiseLinear(POOL5_CHANNELS, POOL5_SIDE),
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
    )
    layers["mix"] = _block(
        nn.Conv2d(POOL5_CHANNELS, POOL5_CHANNELS, 1, bias=bias),
        None if bias else nn.BatchNorm2d(POOL5_CHANNELS),
    )
    for index, (inputs, outputs) in enumerate(pairwise(widths[:-1]), start=1):
        layers[f"up{index}"] = _block(
            nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, bias=bias),
            None if bias else nn.BatchNorm2d(outputs),
        )
    # The colours are linear: a ReLU would forbid half of [-1, 1].
    layers["up5"] = nn.ConvTranspose2d(widths[-2], widths[-1], 5, 2, 2)
    layers["resize"] = BilinearResize(ALEXNET_SIDE)
    return nn.Sequential(layers)


def _inpaint_encoder(config: NetworkConfig) -> nn.Sequential:
    """(B, 3, 128, 128) -> (B, bottleneck)."""
    widths = [3, 64, 64, 128, 256, 512]
    layers = OrderedDict[str, nn.Module]()
    for index, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"e{index}"] = _down(inputs, outputs, norm=index > 1)
    # A 4x4 convolution on a 4x4 map is a dense layer, and several times faster as one.
    layers["e6"] = nn.Sequential(
        nn.Flatten(),
        nn.Linear(512 * 4 * 4, config.bottleneck, bias=False),
        nn.BatchNorm1d(config.bottleneck),
        nn.LeakyReLU(0.2, inplace=True),
    )
    return nn.Sequential(layers)


def _inpaint_decoder(config: NetworkConfig) -> nn.Sequential:
    """(B, bottleneck) -> (B, 3, 64, 64), or one up-convolution more for (B, 3, 128, 128)."""
    widths = [512, 256, 128, 64] if config.output == "center" else [512, 256, 128, 64, 64]
    layers = OrderedDict[str, nn.Module]()
    # A transposed 4x4 convolution from a 1x1 map is a dense layer too.
    layers["d1"] = nn.Sequential(
        nn.Linear(config.bottleneck, 512 * 4 * 4, bias=False),
        nn.Unflatten(1, (512, 4, 4)),
        nn.BatchNorm2d(512),
        nn.ReLU(inplace=True),
    )
    for index, (inputs, outputs) in enumerate(pairwise(widths), start=2):
        layers[f"d{index}"] = _block(
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        )
    layers[f"d{len(widths) + 1}"] = nn.Sequential(
        nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh()
    )
    return nn.Sequential(layers)


def _down(inputs: int, outputs: int, *, norm: bool) -> nn.Sequential:
    """Halve the side. The first layer of a DCGAN has no normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True))


def _block(convolution: nn.Module, norm: nn.Module | None) -> nn.Sequential:
    layers = [convolution] if norm is None else [convolution, norm]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))

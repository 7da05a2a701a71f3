"""Preset `features` on any backbone: its maps of several scales, and a light decoder over them.

The backbone is a network that gives its maps from fine to coarse. In training it computes on the
visible cells alone (see `masked_conversion`); a learned token fills the hidden positions of each
map, and the decoder goes from the coarsest map to the finest, adding one map at each step, and
predicts the target of every cell.

Source: Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling" (SparK), ICLR 2023, arXiv:2301.03580, section 3.2.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ce_model import masked_conversion
from ce_model.feature_targets import CELL_PX, predicting_layer
from ce_model.masked import hide, visible_positions
from ce_model.network_config import FEATURES_SIDE, Layers, Target

WIDTHS = (256, 128, 64)  # of the decoder, from the coarsest map on; the last for all that follow


class Backbone(nn.Module):
    """An encoder that gives one map per scale, named stage1, stage2, ... from fine to coarse.

    Attributes:
        body: module, image -> list of maps, each coarser than the one before.
        channels: of each map.
        strides: px of the image per position of each map.
        visibility: what says which cells are hidden; None where the layers are plain.

    Shape:
        x: float (B, 3, S, S) in [-1, 1]; result: the coarsest map, float (B, C, H, H).
    """

    def __init__(self, body: nn.Module, layers: Layers) -> None:
        """Learn the scales of a body, and give it masked layers if asked.

        Raises:
            masked_conversion.UnsuitedLayerError: a layer of the body has no masked form.
            ValueError: its maps are not of a kind that the decoder can use.
        """
        super().__init__()
        self.body = body
        x = torch.zeros(1, 3, FEATURES_SIDE, FEATURES_SIDE)
        with torch.no_grad():
            maps: Sequence[Tensor] = body.eval()(x)
        self.channels = tuple(found.shape[1] for found in maps)
        self.strides = tuple(FEATURES_SIDE // found.shape[-1] for found in maps)
        shapes = [tuple(found.shape[1:]) for found in maps]
        halving = all(coarse == 2 * fine for fine, coarse in pairwise(self.strides))
        if not maps or not halving or self.strides[0] > CELL_PX or FEATURES_SIDE % self.strides[-1]:
            raise ValueError(
                f"its maps of a {FEATURES_SIDE} px image are {shapes}; each must have half the "
                f"side of the one before, and the first {FEATURES_SIDE // CELL_PX} or more"
            )
        self.visibility = None
        if layers == "masked":
            self.visibility = masked_conversion.convert(body)
            cells = torch.zeros(1, FEATURES_SIDE // CELL_PX, FEATURES_SIDE // CELL_PX)
            with torch.no_grad():
                self.visible_maps(x, cells.bool())  # finds what no layer tells beforehand
        self.train()  # both looks left the body in evaluation mode

    def forward(self, x: Tensor) -> Tensor:
        """The coarsest map of whole images."""
        return self.maps(x)[-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """All maps of whole images, fine to coarse."""
        return list(self.body(x))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """All maps of whole images by name."""
        return {f"stage{number}": found for number, found in enumerate(self.maps(x), start=1)}

    def visible_maps(self, x: Tensor, hidden: Tensor) -> list[Tensor]:
        """All maps of the visible cells, computed on those alone; zero in the hidden ones.

        Shape:
            hidden: bool (B, G, G), True where hidden.
        """
        assert self.visibility is not None, "the layers are dense: they see no cells"
        self.visibility.show(hidden)
        try:
            found = self.body(hide(x, hidden))
        finally:
            self.visibility.show(None)
        return [hide(one, hidden) for one in found]

    def plain(self) -> "Backbone":
        """A copy whose layers are those of the body that was given; the weights are the same."""
        made = copy.deepcopy(self)
        if made.visibility is not None:
            masked_conversion.unconvert(made.body)
            made.visibility = None
        return made


class HierarchicalDecoder(nn.Module):
    """From the maps of a backbone to the target of every cell; tokens stand for what is hidden.

    Per map a 1x1 convolution; from coarse to fine the sum with the enlarged coarser one and a 3x3
    convolution; from the finest map one convolution over each cell.

    Attributes:
        tokens: float (C,) for each map, none with dense layers, whose maps have no holes.

    Shape:
        maps: float (B, C, H, H) each, fine to coarse; hidden: bool (B, G, G); result: float
        (B, target_channels, G, G).
    """

    def __init__(
        self, target: Target, layers: Layers, channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        """Build the layers; their weights are drawn by `networks.init_weights`."""
        super().__init__()
        tokens = [nn.Parameter(torch.zeros(c)) for c in channels] if layers == "masked" else []
        self.tokens = nn.ParameterList(tokens)
        coarse_first = list(reversed(channels))
        widths = [WIDTHS[min(at, len(WIDTHS) - 1)] for at in range(len(channels))]
        self.enter = nn.ModuleList(
            nn.Conv2d(inputs, width, 1) for inputs, width in zip(coarse_first, widths, strict=True)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1, bias=False) for coarse, fine in pairwise(widths)
        )
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for width in widths
        )
        taps = CELL_PX // strides[0]
        self.predict = predicting_layer(widths[-1], target, taps)

    def forward(self, maps: Sequence[Tensor], hidden: Tensor) -> Tensor:
        """Predict every cell."""
        x: Tensor | None = None
        for at, (enter, refine) in enumerate(zip(self.enter, self.refine, strict=True)):
            level = len(maps) - 1 - at
            added = enter(self._filled(maps[level], level, hidden))
            if x is not None:
                added = added + F.interpolate(self.narrow[at - 1](x), scale_factor=2.0)
            x = refine(added)
        prediction: Tensor = self.predict(x)
        return prediction

    def _filled(self, found: Tensor, level: int, hidden: Tensor) -> Tensor:
        """A map with its token in the hidden positions."""
        if not len(self.tokens):
            return found
        visible = visible_positions(hidden, found.shape[-1]).bool()
        return torch.where(visible, found, self.tokens[level].to(found.dtype).view(1, -1, 1, 1))

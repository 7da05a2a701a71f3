"""Small models for the tests."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ce_model.networks import NetworkConfig, build_generator
from ce_model.training import default_objective
from pipelines.models import files

SMALL = NetworkConfig(preset="inpaint", bottleneck=8)


def save_small_model(folder: Path, seed: int = 0, **more: str) -> str:
    generator = build_generator(SMALL, generator=torch.Generator().manual_seed(seed))
    info = {"strategy": "central", "steps": 0, "seed": seed, **more}
    files.save_model(str(folder), generator, SMALL, default_objective(SMALL), info)
    return str(folder)


class Residual(nn.Module):
    """As in ResNet: two convolutions with batch norm, halved, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))


class ChannelsLast(nn.Module):
    """As in ConvNeXt: depthwise convolution, layer norm and linear layers over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.mix(self.norm(self.spread(x).permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class Body(nn.Module):
    """Maps at strides 4, 8, 16 and 32; the last two weighed by their global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            ChannelsLast(16),
        )
        # Multiples of 16, as real ones: with 8 or 12 torch 2.13 writes outside its memory in the
        # backward pass of a 1x1 convolution of stride 2, channels last, on processors with AMX.
        self.stages = nn.ModuleList([Residual(16, 32), Residual(32, 48), Residual(48, 64)])
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [*maps[:2], *(found * torch.sigmoid(self.mean(found)) for found in maps[2:])]


def small_body() -> nn.Module:
    """Layers as ResNet and ConvNeXt have them, with norms that are anything but neutral."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Body()
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return made

"""What a training minimises, and how fast: the paper's losses, weights and learning rates.

Source: Pathak et al. 2016, arXiv:1604.07379, sections 3.2 and 5; train.lua and train_random.lua.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ce_model.choices import Reconstruction
from ce_model.masks import Strategy
from ce_model.network_config import NetworkConfig, Preset
from ce_model.training.optimization import MUON_MOMENTUM, Optimization

IMAGENET_MEAN = (123.0, 117.0, 104.0)  # RGB, 0 to 255
UNET_RATE = 1e-3  # learning rate of the preset that is not the paper's
DEFAULT_STRATEGY: dict[Preset, Strategy] = {
    "alexnet": "random_region", "inpaint": "central", "unet": "free_form", "features": "grid_60"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the generator is trained to minimise."""

    reconstruction: Reconstruction = "l2"
    """Error of a pixel: squared (l2) or absolute (l1)."""
    adversarial: float = 0.001
    """Share of the adversarial loss in the joint loss; 0 trains without a discriminator."""
    overlap: int = 4
    """Width of the ring along the border of the hole that is shown and predicted too, pixels."""
    ring_weight: float = 10.0
    """Weight of the ring in the reconstruction loss; the hole has weight 1."""
    region: Literal["hole", "image"] = "hole"
    """Pixels of a full output that count: the hidden ones or all. A centre always counts whole."""
    fill: tuple[float, float, float] = IMAGENET_MEAN
    """Colour of the hole in the input, RGB, 0 to 255; 117 104 123 is the order of train.lua."""
    start: Literal["colour", "smooth"] = "colour"
    """What stands in the hole of the input: the colour, or the surroundings drawn smoothly into it
    (`push_pull`); an image without a visible pixel has the colour anyway."""
    feature_matching: float = 0.0
    """Weight, beside the joint loss, of the distance between what the discriminator's layers see of
    the filled and of the real image; unet with an adversarial loss only."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.adversarial <= 1:
            raise ValueError(
                f"objective.adversarial is {self.adversarial}; it must be 0 to 1, because the "
                "reconstruction loss gets the rest"
            )
        if not 0 <= self.overlap <= 16:
            raise ValueError(
                f"objective.overlap is {self.overlap} px; it must be 0 to 16, so that at least "
                "half the side of a 64 px centre stays hidden"
            )
        if self.feature_matching < 0 or (self.feature_matching and not self.adversarial):
            raise ValueError(
                f"objective.feature_matching is {self.feature_matching} with adversarial "
                f"{self.adversarial}; it must be 0 or more, and 0 without a discriminator"
            )
        if self.ring_weight <= 0:
            raise ValueError(f"objective.ring_weight is {self.ring_weight}; it must be above 0")
        if not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"objective.fill is {self.fill}; each value must be 0 to 255")


class LearningRates(NamedTuple):
    """Of the generator and of the discriminator."""

    generator: float
    discriminator: float


def default_objective(network: NetworkConfig) -> Objective:
    """The paper's loss: joint with a ring for a centre, joint over the image, or hole only.

    unet, which is not the paper's, minimises the absolute error of the hole from a smooth start.
    """
    if network.preset in ("alexnet", "features"):
        return Objective(adversarial=0.0, overlap=0)
    if network.preset == "unet":
        return Objective(
            reconstruction="l1", adversarial=0.0, overlap=0, region="hole", start="smooth"
        )
    if network.output == "full":
        return Objective(overlap=0, region="image")
    return Objective()


def default_strategy(preset: Preset) -> Strategy:
    """Central holes for the paper's inpainting, random regions for features, any for unet."""
    return DEFAULT_STRATEGY[preset]


def default_shorter(network: NetworkConfig) -> int:
    """Shorter side to which an image is resized before the random crop, px; 0 keeps its size."""
    return 0 if network.preset in ("alexnet", "features") else 144


def default_optimization(network: NetworkConfig, steps: int) -> Optimization:
    """Adam at a constant rate for the paper's networks, as in train.lua.

    unet and features take Muon, which learns more from few images, with a cosine. unet, whose
    residuals have no batch norm to tame them, warms up and clips. features decays its weights, as
    is usual for masked prediction: MAE, arXiv:2111.06377, table 8, and SparK, arXiv:2301.03580.
    """
    if network.preset == "unet":
        return Optimization(
            optimizer="muon",
            betas=(0.5, 0.99),
            momentum=MUON_MOMENTUM,
            schedule="cosine",
            warmup_steps=50,
            clip_norm=0.5,
        )
    if network.preset == "features":
        return Optimization(
            optimizer="muon",
            betas=(0.9, 0.95),
            momentum=MUON_MOMENTUM,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=round(0.05 * steps),
        )
    return Optimization()


def default_learning_rates(
    network: NetworkConfig, strategy: Strategy, adversarial: float
) -> LearningRates:
    """The rates of train.lua, and for alexnet those reported for the paper."""
    if network.preset == "features":
        generator = 1e-3
    elif network.preset == "alexnet":
        generator = 1e-3 if strategy == "central" else 1e-4
    elif network.preset == "unet":
        return LearningRates(UNET_RATE, UNET_RATE)
    else:
        generator = 2e-3 if 0 < adversarial < 1 else 2e-4
    return LearningRates(generator, discriminator_rate(network, generator, adversarial))


def discriminator_rate(network: NetworkConfig, generator: float, adversarial: float) -> float:
    """A tenth of the generator's; without a reconstruction loss the same, as in train.lua.

    The judge of unet, held by its spectral norm, learns as fast as the generator.
    """
    return generator if adversarial == 1 or network.preset == "unet" else generator / 10

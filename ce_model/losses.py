"""Reconstruction, adversarial and joint loss, all computed in float32.

The paper's adversarial loss is cross-entropy; preset `unet` is judged by patches with the hinge.

Source: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv:1604.07379, section 3.2; reductions and weights of train.lua.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ce_model.choices import Reconstruction


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor,
    kind: Reconstruction = "l2",
    num_pixels: Tensor | None = None,
) -> Tensor:
    """Weighted error over the pixels that count, divided by their number of values.

    The number is that of pixels with a weight above 0, times 3 colours; it is not the sum of the
    weights. So a hole of weight 1 gives the mean over the hidden values of the batch, and a ring
    of weight 10 raises the loss, as in train.lua.

    Where the batch is a part of a larger one, `num_pixels` is the mean number of such pixels in
    its parts: then the mean of the parts' losses is the loss of the whole. None counts here.

    Shape:
        prediction, target: float (B, 3, T, T); weight: float (B, 1, T, T); num_pixels: ();
        result: ().
    """
    # Weights have one channel, so with channels_last every operation on them would be strided.
    difference = prediction.to(torch.float32, memory_format=torch.contiguous_format) - target
    error = difference.square() if kind == "l2" else difference.abs()
    if num_pixels is None:
        num_pixels = torch.count_nonzero(weight)
    return (weight * error).sum() / (prediction.shape[1] * num_pixels)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross-entropy of real against 1 plus that of fake against 0, without a factor of 1/2.

    Shape:
        real_logits, fake_logits: float (B,); result: ().
    """
    # log(1 - sigmoid(x)) = -softplus(x) and log(sigmoid(x)) = -softplus(-x)
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Cross-entropy of fake against 1: what the generator minimises (non-saturating).

    Shape:
        fake_logits: float (B,); result: ().
    """
    return F.softplus(-fake_logits.float()).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake), averaged with shares that sum to 1.

    Shape:
        real, fake: verdicts, float (B, 1, h, w); share: the same; result: ().

    Source: Lim and Ye, "Geometric GAN", 2017, arXiv:1705.02894.
    """
    return (share * (F.relu(1 - real.float()) + F.relu(1 + fake.float()))).sum()


def hinge_adversarial_loss(fake: Tensor, share: Tensor) -> Tensor:
    """-fake, averaged with shares that sum to 1: what the generator minimises. Shapes as above."""
    return -(share * fake.float()).sum()


def feature_matching_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean distance of the discriminator's features, averaged over its layers.

    Shape:
        fake, real: by layer, float (B, C, h, w); result: ().

    Source: Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016,
    arXiv:1606.03498; Wang et al., "pix2pixHD", CVPR 2018, arXiv:1711.11585, for the L1 distance.
    """
    distances = [
        (mine.float() - other.float()).abs().mean() for mine, other in zip(fake, real, strict=True)
    ]
    return torch.stack(distances).mean()


def joint_loss(reconstruction: Tensor, adversarial: Tensor, share: float) -> Tensor:
    """(1 - share) * reconstruction + share * adversarial; the paper's share is 0.001."""
    return (1 - share) * reconstruction + share * adversarial

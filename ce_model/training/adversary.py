"""The game between generator and discriminator: what is judged, and what each side minimises.

The paper's presets show the discriminator what was predicted, without context, and use
cross-entropy. Preset `unet` shows it the filled image and the mask, counts the verdicts around the
hole, uses the hinge, and may match the discriminator's features.
"""

import torch
from torch import Tensor, nn

from ce_model.losses import (
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    hinge_adversarial_loss,
    hinge_discriminator_loss,
)
from ce_model.patch_discriminator import PatchDiscriminator, cell_shares
from ce_model.training.distributed import unwrap
from ce_model.training.precision import autocast
from ce_model.training.views import Views


def show(discriminator: nn.Module, pixels: Tensor, views: Views) -> Tensor:
    """What the discriminator reads of a prediction, or of the target itself: its input."""
    if not _by_patches(discriminator):
        return pixels
    filled = torch.where(views.hole, pixels.float(), views.target)
    filled = torch.cat([filled, views.hole.float()], 1)
    return filled.contiguous(memory_format=torch.channels_last)


def discriminator_verdict(
    discriminator: nn.Module, views: Views, prediction: Tensor, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss on real and predicted pixels, and how well it separates them."""
    # Real and predicted patches go through apart, each with its own batch statistics.
    with autocast(prediction.device, dtype):
        real = discriminator(show(discriminator, views.target, views))
        fake = discriminator(show(discriminator, prediction.detach(), views))
    if _by_patches(discriminator):
        share = cell_shares(views.hole)
        loss = hinge_discriminator_loss(real, fake, share)
    else:
        share = None
        loss = discriminator_loss(real, fake)
    real, fake = real.detach().float(), fake.detach().float()
    right = torch.cat([real > 0, fake < 0]).float()
    if share is None:
        measured = {"real": real.sigmoid().mean(), "fake": fake.sigmoid().mean(),
                "accuracy": right.mean()}  # fmt: skip
    else:
        measured = {"real": (share * real.sigmoid()).sum(), "fake": (share * fake.sigmoid()).sum(),
                "accuracy": (torch.cat([share, share]) * right).sum() / 2}  # fmt: skip
    return loss, {f"discriminator/{name}": value for name, value in measured.items()}


def generator_losses(
    discriminator: nn.Module,
    views: Views,
    prediction: Tensor,
    dtype: torch.dtype,
    *,
    matching: bool,
) -> tuple[Tensor, Tensor | None]:
    """The updated discriminator's verdict on the prediction, and the distance of its features.

    The discriminator's own weights get no gradients.
    """
    judge = unwrap(discriminator)
    judge.requires_grad_(False)
    distance = None
    with autocast(prediction.device, dtype):
        shown = show(judge, prediction, views)
        if matching:
            assert isinstance(judge, PatchDiscriminator)
            fake = judge.features(shown)
            verdict = judge.logit(fake[-1])
            with torch.no_grad():
                real = judge.features(show(judge, views.target, views))
            distance = feature_matching_loss(fake, real)
        else:
            verdict = judge(shown)
    judge.requires_grad_(True)
    if _by_patches(judge):
        return hinge_adversarial_loss(verdict, cell_shares(views.hole)), distance
    return adversarial_loss(verdict), distance


def _by_patches(discriminator: nn.Module) -> bool:
    return isinstance(unwrap(discriminator), PatchDiscriminator)

"""Validation of a sibling pretext: how often it answers rightly, and what it was asked."""

from typing import Any, Unpack

import torch
import torch.distributed
from torch import Tensor, nn

from ce_model import training
from ce_model.network_config import NetworkConfig
from ce_model.pretexts import relative_position, transformation
from ce_model.pretexts.draws import fixed_origin
from ce_model.pretexts.questions import classification_loss, is_right, questions_of
from ce_model.training import Computation, answer

CHUNK = 64  # images evaluated at once
VIEW_NAMES = ("first view", "second view")


def measure_pretext(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    row: Tensor,
    **how: Unpack[Computation],
) -> dict[str, float]:
    """How well the questions are answered, over the images of all ranks, always the same ones.

    Shape:
        image: uint8 (N, S, S, 3); hidden: bool (N, S, S); row: int64 (N,), number in the split.

    Returns:
        loss, that of training; accuracy, the mean over the questions; accuracy_chance, that of
        guessing; accuracy_QUESTION of each where there are several.
    """
    asked = questions_of(how["network"])
    one = torch.ones((), device=image.device)
    total = torch.zeros(2 + len(asked.names), dtype=torch.float64, device=image.device)
    for start in range(0, len(image), CHUNK):
        chunk = slice(start, start + CHUNK)
        origin = fixed_origin(row[chunk])
        logits, samples = answer(generator, image[chunk], hidden[chunk], origin, **how)
        loss = classification_loss(logits, samples.classes, one)
        right = is_right(logits, samples.classes).sum(dim=0)
        total += torch.cat([one.new_tensor([len(logits)]), loss.view(1), right])
    if training.num_ranks() > 1:
        torch.distributed.all_reduce(total)
    count, loss_sum, *rights = total.tolist()
    if not count:
        return {}
    found = {
        "loss": loss_sum / count,
        "accuracy": sum(rights) / count / len(rights),
        "accuracy_chance": 1 / asked.answers,
    }
    if len(rights) > 1:
        for name, right in zip(asked.names, rights, strict=True):
            found[f"accuracy_{name.replace(' ', '_')}"] = right / count
    return found


def pretext_panel(
    generator: nn.Module,
    image: Tensor,
    hidden: Tensor,
    row: Tensor,
    **how: Unpack[Computation],
) -> dict[str, Any]:
    """Image and views, uint8 (N, S, S, 3), and `answers`, the true and the given one in words."""
    logits, samples = answer(generator, image, hidden, fixed_origin(row), **how)
    views = samples.views.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    shown = {
        name: views[:, at].permute(0, 2, 3, 1).cpu().numpy()
        for at, name in enumerate(VIEW_NAMES[: views.shape[1]])
    }
    answers = [
        f"true: {_words(how['network'], true)}\n\ngiven: {_words(how['network'], given)}"
        for true, given in zip(samples.classes.tolist(), logits.argmax(2).tolist(), strict=True)
    ]
    return {"image": image.cpu().numpy(), **shown, "answers": answers}


def _words(network: NetworkConfig, classes: list[int]) -> str:
    """Answers as a person reads them; of a bin its middle."""
    if network.pretext == "relative_position":
        return relative_position.POSITIONS[classes[0]]
    if network.pretext == "exemplar":
        return f"image {classes[0]}"
    ranges = (transformation.TURN_DEGREES, transformation.SHIFT_PX, transformation.SHIFT_PX)
    turn, across, down = (
        most * ((2 * at + 1) / transformation.BINS - 1)
        for at, most in zip(classes, ranges, strict=True)
    )
    return f"turned {turn:+.1f} degrees,\nmoved {across:+.1f} px across,\n{down:+.1f} px down"

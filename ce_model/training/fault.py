"""Where in a step the first value that is not finite appears."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ce_model.training.distributed import unwrap
from ce_model.training.step import Networks


class Fault(NamedTuple):
    """The first place."""

    where: str
    """In words: a weight, the output of a layer or the gradient of a weight, with its name."""
    images: tuple[int, ...]
    """Numbers in the batch of the images at fault; empty where it is not one image's."""


def find_fault(
    networks: Networks, take: Callable[..., Any], image: Tensor, *others: Tensor
) -> Fault | None:
    """Take a step that is known to fail, and watch each layer; None where all is finite.

    Every rank has to take part, since ranks may exchange sums within a step.

    Args:
        networks: plain or wrapped.
        take: the step, layer by layer; it applies no update that is not finite.
        image: uint8 (B, S, S, 3).
        others: what else the step takes: hidden bool (B, S, S), and origins.
    """
    seen: list[Fault] = []
    handles = []
    named = [
        (f"{part}.{name}", module)
        for part, network in networks._asdict().items()
        if network is not None
        for name, module in unwrap(network).named_modules()
    ]
    weights = [
        (f"{name}.{key}", parameter)
        for name, module in named
        for key, parameter in module.named_parameters(recurse=False)
    ]
    spoilt = next((name for name, weight in weights if not _is_finite(weight)), None)
    if spoilt is not None:
        seen.append(Fault(f"the weight {spoilt}", ()))
    for name, module in named:
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(_watch(name, len(image), seen)))
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see new hooks
            take(image, *others)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:  # the backward pass begins at the last weights
        gradients = [(name, weight.grad) for name, weight in reversed(weights)]
        bad = [name for name, gradient in gradients if gradient is not None
               and not _is_finite(gradient)]  # fmt: skip
        seen += [Fault(f"the gradient of {name}", ()) for name in bad[:1]]
    return seen[0] if seen else None


def _watch(name: str, count: int, seen: list[Fault]) -> Callable[..., None]:
    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if seen or not isinstance(output, Tensor) or _is_finite(output):
            return
        images: tuple[int, ...] = ()
        if len(output) == count:
            finite = output.detach().flatten(1).isfinite().all(1)
            images = tuple(finite.logical_not().nonzero().flatten().tolist())
        seen.append(Fault(f"the output of layer {name}", images))

    return look


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())

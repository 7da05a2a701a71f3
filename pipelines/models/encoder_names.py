"""Names of the encoders of preset `features`; without torch, so that settings are read in a moment.

A name is `alexnet`, one of `KNOWN`, or a model type of transformers, which then has the
configuration that transformers gives it.

Source: sizes of resnet: He et al., CVPR 2016, arXiv:1512.03385, table 1; of convnextv2: Woo et al.,
CVPR 2023, arXiv:2301.00808, appendix A.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ce_model.network_config import ALEXNET
from pipelines.errors import UserError


def _sizes(depths: list[int], first: int, **more: Any) -> dict[str, Any]:
    return {"depths": depths, "hidden_sizes": [first * 2**at for at in range(4)], **more}


KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet", _sizes([2, 2, 2, 2], 64, layer_type="basic")),
    "resnet34": ("resnet", _sizes([3, 4, 6, 3], 64, layer_type="basic")),
    "resnet50": ("resnet", _sizes([3, 4, 6, 3], 256)),
    "resnet101": ("resnet", _sizes([3, 4, 23, 3], 256)),
    "convnext_tiny": ("convnext", _sizes([3, 3, 9, 3], 96)),
    "convnext_small": ("convnext", _sizes([3, 3, 27, 3], 96)),
    "convnextv2_atto": ("convnextv2", _sizes([2, 2, 6, 2], 40)),
    "convnextv2_femto": ("convnextv2", _sizes([2, 2, 6, 2], 48)),
    "convnextv2_pico": ("convnextv2", _sizes([2, 2, 6, 2], 64)),
    "convnextv2_nano": ("convnextv2", _sizes([2, 2, 8, 2], 80)),
    "convnextv2_tiny": ("convnextv2", _sizes([3, 3, 9, 3], 96)),
    "convnextv2_base": ("convnextv2", _sizes([3, 3, 27, 3], 128)),
}
"""Name of an encoder -> model type of transformers and settings of its configuration."""


def require_encoder(name: str) -> None:
    """Refuse a name that no encoder has.

    Raises:
        UserError: there is none, or transformers is not installed.
    """
    if name == ALEXNET:
        return
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            f"encoder is '{name}', which needs transformers; install it with python -m pip install "
            "'transformers>=5.24,<6', or take encoder alexnet"
        )
    if name not in KNOWN:
        with quiet_transformers() as transformers:
            types = transformers.CONFIG_MAPPING
        if name not in types:
            raise UserError(
                f"encoder is '{name}'; it must be {ALEXNET}, {', '.join(KNOWN)}, or a model type "
                "of transformers whose maps are convolutional, such as regnet"
            )


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Transformers, which for the block shows no progress bars and warns of nothing."""
    import transformers

    logger = transformers.utils.logging
    before, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        yield transformers
    finally:
        logger.set_verbosity(before)
        if bars:
            logger.enable_progress_bar()

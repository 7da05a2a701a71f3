"""Settings as keyword arguments: the types of the configs' fields, and their check at run time.

A type checker sees a wrong name or type; whoever has none is told by `checked_settings`. The fields
stand here again because no type checker derives keyword arguments from a dataclass; a test holds
names and types to those of the configs.
"""

from __future__ import annotations  # the types of settings are for type checkers: no torch

import difflib
import os
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pipelines.errors import UserError

if TYPE_CHECKING:
    from ce_model.masks import Strategy
    from ce_model.network_config import Layers, Pretext, Target
    from ce_model.training import Optimizer, Schedule, TrainPrecision
    from pipelines.prepare.sources.layout import ClassFrom
    from pipelines.pretrain.config import Sink
    from pipelines.pretrain.recipe import Export

Config = TypeVar("Config")


class PrepareSettings(TypedDict, total=False):
    """Of `prepare`, as `python -m pipelines prepare --help` explains them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    class_from: ClassFrom | None
    labels: str | None
    class_list: str | None
    label_base: Literal[0, 1] | None
    strategies: tuple[Strategy, ...]
    sides: tuple[int, ...]
    variants: int
    stored_side: int
    jpeg_quality: int
    validation_share: float
    seed: int
    rows_per_shard: int
    row_group_rows: int
    max_pixels: int
    min_side: int
    max_bad_images: int
    max_bad_share: float
    max_bad_class_share: float
    tracking_uri: str | None
    max_broken_archives: int


class PretrainSettings(TypedDict, total=False):
    """Of `pretrain`, as `python -m pipelines pretrain --help` explains them."""

    pretext: Pretext
    exemplar_classes: int | None
    strategy: Strategy | None
    target: Target | None
    layers: Layers | None
    encoder: str
    adversarial: float | None
    feature_matching: float | None
    reconstruction: Literal["l2", "l1"] | None
    region: Literal["hole", "image"] | None
    overlap: int | None
    ring_weight: float | None
    fill: tuple[float, float, float] | Literal["smooth", "colour"] | None
    norm: Literal["batch", "lrn", "none"]
    groups: Literal[1, 2]
    dropout: float | None
    bottleneck: int | None
    batch_size: int
    accumulate: int
    learning_rate: float | None
    discriminator_learning_rate: float | None
    scale_learning_rate: Literal["none", "linear", "sqrt"]
    optimizer: Optimizer | None
    weight_decay: float | None
    betas: tuple[float, float] | None
    momentum: float | None
    schedule: Schedule | None
    milestones: tuple[int, ...] | None
    warmup_steps: int | None
    clip_norm: float | None
    ema: float | None
    export: Export | None
    init: str | None
    init_map: tuple[str, ...]
    seed: int
    precision: TrainPrecision
    compile: bool
    shorter: int | None
    crop_area: tuple[float, float] | None
    crop_ratio: tuple[float, float] | None
    flip: bool
    colour_jitter: tuple[float, float, float, float] | None
    grey: float
    window_rows: int
    cache_folder: str | None
    cache_gb: float | None
    num_workers: int | str
    threads_per_worker: int | None
    checkpoint_every: int
    keep_checkpoints: int
    keep_best: int
    log_every: int
    validate_every: int | None
    validation_images: int
    time_limit_s: float | None
    max_failures: int
    stall_timeout_s: float
    log_to: tuple[Sink, ...]
    probe_every: int | None
    probe_images: int
    profile_steps: int
    summary: str | None
    tracking_uri: str | None
    experiment: str


class _No:
    """What stands for "not of this kind": None is a value."""


_NO = _No()


def checked_settings(what: str, config_type: type[Config], given: Mapping[str, Any]) -> Config:
    """A config from keyword arguments, as the command line would build it from flags.

    Args:
        what: the function, for the message.
        config_type: of the function.
        given: values by name; a list stands for a tuple, a whole number for a float.

    Raises:
        UserError: an unknown name, a value of another type, or what the config itself refuses.
    """
    hints = get_type_hints(config_type)
    names = [field.name for field in fields(config_type)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
            raise UserError(f"{what} has no setting '{name}'; {hint}")
    values = {name: _value(f"{what}: {name}", hints[name], value) for name, value in given.items()}
    try:
        return config_type(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def _value(name: str, hint: Any, value: Any) -> Any:
    """The value in the type that the config means.

    Raises:
        UserError: it is of another type.
    """
    for kind in _kinds(hint):
        found = _as_kind(kind, value)
        if found is not _NO:
            return found
    raise UserError(f"{name} is {value!r}; it must be {_words(hint)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of what is none, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _as_kind(kind: Any, value: Any) -> Any:
    """The value, or `_NO` where it is not of this kind."""
    origin = get_origin(kind)
    if origin is Literal:
        return value if any(type(c) is type(value) and c == value for c in get_args(kind)) else _NO
    if origin is tuple:
        return _as_tuple(get_args(kind), value)
    if isinstance(value, bool) and kind is not bool:
        return _NO
    if kind is float and isinstance(value, int | float):
        return float(value)  # as the command line does: 0 and 0.0 are one setting with one key
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if isinstance(value, kind) else _NO


def _as_tuple(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _NO
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _NO
    found = tuple(_as_kind(kind, item) for kind, item in zip(kinds, value, strict=True))
    return _NO if any(item is _NO for item in found) else found


def _words(hint: Any) -> str:
    """A type for a message: `one of 'l2', 'l1'`, `int or None`."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if len(_kinds(hint)) > 1:
        return " or ".join(map(_words, _kinds(hint)))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        number = "" if inner[-1] is Ellipsis else f"{len(inner)} times "
        return f"a list of {number}{_words(inner[0])}"
    return "None" if hint is type(None) else str(hint.__name__)

"""The flags of a config: their names, the nearest to a misspelt one, those that are not shown."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

HIDDEN = "HIDDEN_FLAGS"  # class variable of a config: `pretrain.source` and the like
RENAMED = "RENAMED_FLAGS"  # class variable of a config: former names of fields, with today's
ALWAYS = ("--help", "--config")


def flags_of(config_type: type, prefix: str = "--") -> Iterator[str]:
    """Every flag, those of nested configs with a dot: `--pretrain.batch-size`."""
    hints = get_type_hints(config_type)
    for each in fields(config_type):
        flag = f"{prefix}{each.name}".replace("_", "-")
        kind = hints[each.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from flags_of(kind, f"{flag}.")
        else:
            yield flag


def renamed_flags(config_type: type, prefix: str = "--") -> Iterator[tuple[str, str]]:
    """Former flags, those of nested configs with a dot, each with the flag of today."""
    for old, new in getattr(config_type, RENAMED, {}).items():
        yield f"{prefix}{old}".replace("_", "-"), f"{prefix}{new}".replace("_", "-")
    hints = get_type_hints(config_type)
    for each in fields(config_type):
        kind = hints[each.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from renamed_flags(kind, f"{prefix}{each.name}.".replace("_", "-"))


def unknown_flags(config_type: type, args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags that a config does not have, each with the nearest that it has, or all names."""
    known = [*flags_of(config_type), *ALWAYS]
    for arg in args:
        if arg.startswith("--") and arg != "--" and arg.replace("_", "-") not in known:
            near = difflib.get_close_matches(arg.replace("_", "-"), known, n=1)
            last = [flag for flag in known if flag.split(".")[-1] == arg.removeprefix("--")]
            hints = last or near  # `--steps` of a workflow is `--pretrain.steps`
            yield arg, f"did you mean {hints[0]}?" if hints else "--help lists all"


def without(config_type: type, names: Sequence[str], suppress: Any) -> type:
    """The config as its help shows it: without the flags that its own check refuses.

    Args:
        config_type: a dataclass.
        names: of fields, those of nested configs with a dot.
        suppress: the marker of the parser for a field that is not shown.
    """
    hints = get_type_hints(config_type)
    changed = []
    for each in fields(config_type):
        inner = [name.partition(".")[2] for name in names if name.split(".")[0] == each.name]
        if not inner:
            continue
        kind: Any = hints[each.name]
        nested = inner != [""]
        kind = without(kind, inner, suppress) if nested else Annotated[kind, suppress]
        usual: Any = field(default_factory=kind) if nested else field(default=each.default)
        changed.append((each.name, kind, usual))
    shown = {"__doc__": config_type.__doc__}
    return make_dataclass(
        config_type.__name__,
        changed,
        bases=(config_type,),
        frozen=True,
        kw_only=True,
        namespace=shown,
    )

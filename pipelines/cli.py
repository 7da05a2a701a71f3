"""One parser for every job: a YAML file is a list of flags written down."""

import dataclasses
import difflib
import io
import itertools
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from pipelines import flags
from pipelines.errors import UserError, redact

Config = TypeVar("Config")
NOT_DELIVERED = 5  # exit code


def main(run: Callable[[Config], object], config_type: type[Config]) -> None:
    """Parse the command line and run; a user's mistake ends as one message and exit code 1.

    Ctrl-C, SIGTERM and a terminal that is closed (SIGHUP, unless under `nohup`) end as one message
    and exit code 130, as shells expect, from the first second on. A result that says `delivered:
    False` (everything is done and stored, but MLflow lacks some of it) ends with NOT_DELIVERED.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its cache, where HOME is read-only
    if isinstance(sys.stdout, io.TextIOWrapper):  # under LANG=C or PYTHONIOENCODING=ascii
        sys.stdout.reconfigure(errors="backslashreplace")
    pipe = getattr(signal, "SIGPIPE", None)  # there is none on Windows
    try:
        if pipe is not None:
            signal.signal(pipe, signal.SIG_DFL)  # `--help | head` ends as every program does
        config = parse(config_type)
        if pipe is not None:
            signal.signal(pipe, signal.SIG_IGN)  # a connection that breaks is an error to tell
        # What a job needs takes seconds to load.
        sys.stderr.write(f"starting {Path(sys.argv[0]).stem.split()[-1]}\n")
        result = run(config)
    except (UserError, OSError) as error:  # a full disk, a server that is away, no permission
        text = f"error: {redact(str(error))}"
        if isinstance(error, OSError) or error.code == 1:
            sys.exit(text)
        sys.stderr.write(f"{text}\n")
        sys.exit(error.code)
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal is gone
            sys.stderr.write(
                "interrupted: rerun the same command, and it resumes from what is finished\n"
            )
        sys.exit(130)
    except Exception:  # a defect: the whole traceback, as Python prints it, but no password
        sys.stderr.write(redact(traceback.format_exc()))
        sys.exit(1)
    if isinstance(result, dict) and result.get("delivered") is False:
        sys.exit(NOT_DELIVERED)


def parse(config_type: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Build a config from ``--config FILE.yaml`` and flags; a flag beats the file."""
    args = list(_split_at_equals(sys.argv[1:] if argv is None else argv))
    written: list[str] = []
    path = None
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            _exit_2("--config needs a YAML file: --config configs/quickstart.yaml")
        path = args[at + 1]
        written = list(_flags(read_yaml(path)))
        args = [*args[:at], *args[at + 2 :]]
    args, written = (_with_new_names(config_type, words) for words in (args, written))
    if "--config" in args:
        _exit_2("--config is given twice; give it once: --config FILE.yaml --flag ...")
    _check_names(config_type, written, f"--config is '{path}', where there is ")
    _check_names(config_type, args, "there is no flag ")
    hidden = getattr(config_type, flags.HIDDEN, ())
    if hidden and {"--help", "-h"} & set(args):  # the parser ends there
        shown = flags.without(config_type, hidden, tyro.conf.Suppress)
        tyro.cli(shown, args=args, config=(tyro.conf.FlagConversionOff,))
    args = list(_bare_flags(config_type, [*written, *_joined(config_type, args)]))
    try:
        _check_choices(config_type, args)
        return tyro.cli(config_type, args=args, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as end:
        if written and end.code:
            sys.stderr.write(
                f"read before the flags: --config {path}: {redact(' '.join(written))}\n"
            )
        raise


def _with_new_names(config_type: type, args: Sequence[str]) -> list[str]:
    """A flag's former name is the flag, with a warning."""
    renamed = dict(flags.renamed_flags(config_type))
    found = list(args)
    for at, arg in enumerate(args):
        new = renamed.get(arg.replace("_", "-")) if arg.startswith("--") else None
        if new is not None:
            sys.stderr.write(f"warning: {arg} is called {new} now; the former name will go away\n")
            found[at] = new
    return found


def _check_names(config_type: type, args: Sequence[str], where: str) -> None:
    """Refuse a misspelt flag first: that a required one is missing may be for that alone."""
    for flag, hint in flags.unknown_flags(config_type, args):
        name = flag if where.endswith("flag ") else f"no setting '{flag.removeprefix('--')}'"
        _exit_2(f"{where}{name}; {hint}")


def _split_at_equals(args: Sequence[str]) -> Iterator[str]:
    """`--flag=value` is `--flag value`."""
    for arg in args:
        yield from arg.split("=", 1) if arg.startswith("--") else [arg]


def _bare_flags(config_type: type, args: Sequence[str]) -> Iterator[str]:
    """A flag of a yes-or-no field needs no value: `--rollback` is `--rollback True`."""
    hints = get_type_hints(config_type)
    flags = {f"--{name}".replace("_", "-") for name, kind in hints.items() if kind is bool}
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue="--"):
        yield arg
        if arg.replace("_", "-") in flags and following.startswith("--"):
            yield "True"


def _joined(config_type: type, args: Sequence[str]) -> list[str]:
    """A flag of several values may be given several times: `--source a --source b`."""
    several = {
        f"--{name}".replace("_", "-")
        for name, kind in get_type_hints(config_type).items()
        if tuple in (get_origin(kind), *map(get_origin, get_args(kind)))
    }
    groups: list[list[str]] = []
    for arg in args:
        if arg.startswith("--") or not groups:
            groups.append([arg])
        else:
            groups[-1].append(arg)
    joined: dict[str, list[str]] = {}
    for place, (flag, *values) in enumerate(groups):
        name = flag.replace("_", "-")
        joined.setdefault(name if name in several else f"{place} {flag}", [flag]).extend(values)
    return [arg for group in joined.values() for arg in group]


def read_yaml(path: str, flag: str = "--config") -> dict[str, Any]:
    """A YAML file of `name: value` lines; one that cannot be read ends the job with code 2."""
    try:
        tree = yaml.load(Path(path).read_text("utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, no such date
        _exit_2(f"{flag} is '{path}', which cannot be read as YAML: {error}")
    if not isinstance(tree, dict | None):
        _exit_2(f"{flag} is '{path}'; it must hold `name: value` lines, as in configs/")
    try:
        names = list(_names(tree or {}))
    except RecursionError:
        _exit_2(f"{flag} is '{path}', where an alias (*) stands inside of what it names")
    for name in names:
        if not isinstance(name, str):
            _exit_2(f"{flag} is '{path}'; the name {name!r} in it must be a text: put it in quotes")
    return tree or {}


class _Loader(yaml.SafeLoader):
    """A class because PyYAML wants one: a name given twice is refused, not kept at its last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [name.value for name, _ in node.value]
        for at, name in enumerate(names):
            if name in names[:at]:
                line = node.value[at][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line} gives {name} again")
        return node


def _names(tree: dict[Any, Any]) -> Iterator[Any]:
    for name, value in tree.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


def _flags(tree: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flags(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}".replace("_", "-")
            yield from map(str, value if isinstance(value, list) else [value])


def _check_choices(config_type: type, args: Sequence[str], prefix: str = "--") -> None:
    """Refuse a misspelt choice with the nearest valid name, which tyro does not suggest."""
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        flag = f"{prefix}{field.name}".replace("_", "-")
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            _check_choices(kind, args, f"{flag}.")
        choices = [str(choice) for choice in _literal_choices(kind)]
        for given in _values_of(flag, args) if choices else ():
            if given not in choices:
                near = difflib.get_close_matches(given, choices, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                _exit_2(f"{flag} is '{given}'; it must be one of {', '.join(choices)}{hint}")


def _literal_choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside `tuple[Literal[...], ...]` and `Literal[...] | None`.

    None where other values are allowed beside them, as in `Literal[...] | tuple[float, ...]`.
    """
    if get_origin(kind) is Literal:
        return get_args(kind)
    found = {arg: _literal_choices(arg) for arg in get_args(kind) if arg is not type(None)}
    if not all(found.values()) and get_origin(kind) is not tuple:
        return ()
    inner = [choice for choices in found.values() for choice in choices]
    return (*inner, "None") if inner and type(None) in get_args(kind) else tuple(inner)


def _values_of(flag: str, args: Sequence[str]) -> Iterator[str]:
    for at, arg in enumerate(args):
        if arg.replace("_", "-") == flag:
            for value in args[at + 1 :]:
                if value.startswith("--"):
                    break
                yield value


def _exit_2(message: str) -> Any:
    sys.stderr.write(f"error: {redact(message)}\n")
    raise SystemExit(2)

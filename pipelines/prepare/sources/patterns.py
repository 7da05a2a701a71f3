"""A source as it is typed -> the files and folders that it means: braces, globs, several sources.

    shards/train-{000000..001281}.tar     a rising range
    shards/{train,val}-{00..03}.tar       words, several groups
    shards/**/*.tar                       `*` stays within a name, `**` does not

What exists under the very name is that: a folder `photos {2023}` needs no escape.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipelines import storage
from pipelines.errors import UserError
from pipelines.prepare.sources.globs import glob_regex
from pipelines.prepare.sources.placing import printable

GROUP = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Named(NamedTuple):
    """A file that a source names, or a folder to walk."""

    uri: str
    path: str
    """What its keys begin with; empty for a folder that is the only source."""
    is_folder: bool
    is_alone: bool = False
    """Whether it is a file and the whole source."""


def expand(sources: tuple[str, ...]) -> Iterator[Named]:
    """The files and folders of sources.

    Raises:
        UserError: there is nothing at one of them.
    """
    names = _short_names(sources)
    for source, prefix in zip(sources, names, strict=True):
        if _is_there(source):
            is_folder = storage.is_folder(source)
            name = source.rstrip("/").rpartition("/")[2]
            alone = not is_folder and len(sources) == 1
            yield Named(source, prefix if is_folder else prefix or name, is_folder, alone)
        elif "::" in source:
            parts = " ".join(f"'{part}'" for part in source.split("::"))
            raise UserError(
                f"--source is '{source}'; there is no such file or folder, and '::' joins none: "
                f"give several sources, as in --source {parts}"
            )
        elif GROUP.search(source):
            yield from _of_braces(source, prefix)
        elif re.search(r"[*?\[]", source):
            yield from _of_glob(source, prefix)
        else:
            raise UserError(f"--source is '{source}'; there is no such file or folder")


def roots(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The folders among several sources, as the tree of all names has them (see `survey`)."""
    return tuple(printable(n.path) for n in expand(sources) if n.is_folder and n.path)


def _is_there(source: str) -> bool:
    """Whether a place of this very name exists; fsspec would read `::` in it as a chain."""
    if "::" in source and storage.is_local(source):
        return storage.local_path(source).exists()
    return storage.exists(source)


def _of_braces(source: str, prefix: str) -> Iterator[Named]:
    folder, _, _ = source[: source.index("{")].rpartition("/")
    found, missing = [], []
    for uri in expand_braces(source):
        if re.search(r"[*?\[]", uri):
            found += list(_of_glob(uri, prefix, folder))
        elif storage.exists(uri):
            is_folder = storage.is_folder(uri)
            path = uri.removeprefix(folder).strip("/")
            found.append(Named(uri, f"{prefix}/{path}" if prefix else path, is_folder))
        else:
            missing.append(uri)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"--source is '{source}'; {len(missing)} of {len(missing) + len(found)} are not "
            f"there: '{missing[0]}'{more}"
        )
    yield from found


def expand_braces(source: str) -> list[str]:
    """`{a,b}-{000..002}.tar` -> a-000.tar, a-001.tar, a-002.tar, b-000.tar ...

    Raises:
        UserError: braces hold something else.
    """
    parts = GROUP.split(source)
    choices = []
    for at, part in enumerate(parts):
        if at % 2 == 0:
            choices.append([part])
        elif (match := RANGE.fullmatch(part)) and int(match[1]) <= int(match[2]):
            width = len(match[1])
            choices.append([f"{n:0{width}}" for n in range(int(match[1]), int(match[2]) + 1)])
        elif "," in part:
            choices.append(part.split(","))
        else:
            raise UserError(
                f"--source is '{source}'; there is no such file or folder, and braces must hold a "
                "rising range or words, as in s-{000..146}.tar or {train,val}.tar"
            )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _of_glob(source: str, prefix: str, folder: str | None = None) -> Iterator[Named]:
    special = re.search(r"[*?\[]", source)
    assert special is not None
    root = source[: special.start()].rpartition("/")[0]
    if not root or not storage.is_folder(root):
        raise UserError(f"--source is '{source}'; there is no folder '{root}'")
    wanted = re.compile(glob_regex(source[len(root) + 1 :]) + "(?:/|$)")
    strip = root if folder is None else folder
    count = 0
    for below, _ in storage.walk(root):
        if wanted.match(below):
            uri = storage.join(root, below)
            path = uri.removeprefix(strip).strip("/")
            yield Named(uri, f"{prefix}/{path}" if prefix else path, False)
            count += 1
    if not count:
        raise UserError(f"--source is '{source}'; no file below '{root}' matches it")


def _short_names(sources: tuple[str, ...]) -> list[str]:
    """What the keys of each of several sources begin with: the shortest ends that differ."""
    if len(sources) == 1:
        return [""]
    parts = [[part for part in source.split("/") if part] for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return [_plain(name) for name in names]
    raise UserError(f"--source names '{sources[0]}' and others of {len(sources)} twice")


def _plain(name: str) -> str:
    """The folders of a pattern that hold no pattern."""
    if re.search(r"[*?\[{]", name):
        return name[: re.search(r"[*?\[{]", name).start()].rpartition("/")[0]  # type: ignore[union-attr]
    return name

"""Paths and globs below a source: `*` stays within a name, `**` does not."""

import fnmatch
import re


def matched(pattern: str, path: str) -> int | None:
    """How many folders of `path` a pattern names; None where it does not match.

    A pattern is a path below the source, or a glob: `*` stays within a name, `**` does not. What
    matches a folder matches all that is in it. One that names a single image names no folder, so
    that `--val 'cat/1.jpg'` leaves it in its class.
    """
    parts = pattern.strip("/").removeprefix("./").split("/")
    pattern = "/".join(parts)
    found = re.match(rf"(?:{glob_regex(pattern)})(?:/|$)", path)
    if not found:
        return None
    if "**" not in pattern and re.fullmatch(glob_regex(pattern), path):  # it names the file
        parts = parts[:-1] if re.search(r"[*?\[]", pattern) else []
    while parts and not parts[-1].strip("*"):
        parts.pop()
    depth = next((at for at, part in enumerate(parts) if "**" in part), len(parts))
    return min(depth, path.count("/"))


def glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a name, `**` does not."""
    return "".join(
        {"**": ".*", "**/": "(?:.*/)?"}.get(part)
        or fnmatch.translate(part)[4:-3].replace(".*", "[^/]*")
        for part in re.split(r"(\*\*/?)", pattern)
    )

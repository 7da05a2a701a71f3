"""README and docs: links lead somewhere, commands have the flags they name, Python is Python."""

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from helpers import ROOT

LOG = ROOT / "docs" / "log"  # what was run then, in the words of that day
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if LOG not in page.parents),
]
OF_THE_PARSER = {"config", "help"}
BEGINNINGS = ("    ", "$ ", "python ", ".venv/bin/python ")  # of a line that is a command


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link and not link.startswith("mailto:"):
            assert (page.parent / link).exists(), f"{name_of(page)} links {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_are_python_and_import_what_there_is(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("pipelines", "ce_model")
            ):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command that runs one of our jobs, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        if line.startswith(BEGINNINGS) and re.search(r"\bjobs/\w+\.py", line):
            quoted = line.partition(" #")[0].replace("$(git rev-parse HEAD)", "COMMIT")
            words = shlex.split(quoted)
            start = next(i for i, word in enumerate(words) if re.search(r"jobs/\w+\.py$", word))
            yield words[start:]


@cache
def flags_of(job: str) -> frozenset[str]:
    """Every flag of a job, from the dataclass that it parses."""
    tree = ast.parse((ROOT / job).read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    (name,) = (c.args[1].id for c in calls if c.func.id == "main")  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [a.name for a in node.names]:
            config = getattr(importlib.import_module(node.module or ""), name)
            return frozenset(fields_of(config))
    raise AssertionError(f"{job} imports no {name}")


def fields_of(config: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(config).items():
        yield f"{prefix}{name}".replace("_", "-")
        if dataclasses.is_dataclass(kind):
            yield from fields_of(kind, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_jobs_and_flags_that_exist(page: Path) -> None:
    for job, *words in commands(page.read_text()):
        assert (ROOT / job).exists(), f"{name_of(page)}: {job}"
        for word in words:
            if re.match(r"--[a-z]", word):
                flag = word[2:].partition("=")[0].replace("_", "-")
                known = flags_of(job) | OF_THE_PARSER
                assert flag in known, f"{name_of(page)}: {job} {word}"

"""A folder of results is finished when its `commit.json` exists, which is written last."""

from typing import Any

from pipelines.storage.objects import exists, join, read_json

COMMIT = "commit.json"


def commit_uri(folder: str) -> str:
    """Where the commit of a folder lies."""
    return join(folder, COMMIT)


def is_committed(folder: str) -> bool:
    """Whether what a folder holds is finished."""
    return exists(commit_uri(folder))


def read_commit(folder: str) -> dict[str, Any] | None:
    """What the commit of a folder says; None when it is not finished."""
    if not is_committed(folder):
        return None
    record: dict[str, Any] = read_json(commit_uri(folder))
    return record

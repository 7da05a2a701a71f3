"""How much room a place has, asked before hours of work instead of after them."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import UserError
from pipelines.storage.objects import absolute, is_local, local_path


def free_bytes(uri: str) -> int | None:
    """Free bytes where a local URI lies, or will lie; None where nobody can tell."""
    if not is_local(uri):
        return None
    path = local_path(absolute(uri))
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def describe_full(error: Exception, uri: str) -> str | None:
    """What a full disk or a used-up quota means for a store; None for another error."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    free = free_bytes(uri)
    left = "" if free is None else f" ({free / 1e9:.2f} GB free)"
    return f"the store '{absolute(uri)}' is full{left}: {error.strerror}; make room in it"


@contextmanager
def naming_full(uri: str) -> Iterator[None]:
    """Let a full disk inside the block be told by the name of the store, not of a file in it.

    Raises:
        UserError: there is no room.
    """
    try:
        yield
    except OSError as error:
        if (text := describe_full(error, uri)) is None:
            raise
        raise UserError(f"{text}, and rerun the same command: it resumes") from error

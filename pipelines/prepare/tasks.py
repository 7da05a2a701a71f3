"""One Ray Data task per item, with progress, and failures in the user's words."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipelines.errors import UserError
from pipelines.prepare.progress import progress
from pipelines.runtime import malloc
from pipelines.runtime.ray_internals import RefreshLimits

# Two tasks share a core: one works while the other waits, for storage or for the next item, which
# Ray Data sends up to 0.1 s after the last one is done.
CPUS_PER_TASK = 0.5

Task = Callable[[dict[str, Any]], dict[str, int]]


def run_tasks(what: str, items: Sequence[Mapping[str, Any]], task: Task) -> None:
    """Run `task` over the items in any order; it returns `images` and `bytes` for the display.

    Raises:
        UserError: the first task that failed did so for a reason outside the program.
    """
    if not items:
        return
    work = ray.data.from_items(list(items), override_num_blocks=len(items))
    work = work.map(partial(_in_worker, what=what, task=task), num_cpus=CPUS_PER_TASK)
    finish(work, what, len(items))


def finish(work: ray.data.Dataset, what: str, count: int) -> None:
    """Run tasks to their end; each gives a row with `images` and `bytes` for the display.

    Raises:
        UserError: the first task that failed did so for a reason outside the program.
    """
    work.context.custom_execution_callback_classes = [RefreshLimits]
    work.context.raise_original_map_exception = True  # else a full disk is no OSError
    consume(work.iter_rows(), what, count)


def consume(results: Iterable[dict[str, Any]], what: str, count: int) -> None:
    """Show how far tasks are, by the `images` and `bytes` of each that has ended.

    Raises:
        UserError: the first task that failed did so for a reason outside the program.
    """
    with progress(what, count) as advance:
        try:
            for result in results:
                advance(1, result["images"], result["bytes"])
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise


def _in_worker(item: dict[str, Any], what: str, task: Task) -> dict[str, int]:
    malloc.keep_freed_memory()
    with failing_as_user_error(what):
        return task(item)


@contextmanager
def failing_as_user_error(what: str) -> Iterator[None]:
    """In a task: a storage that fails is the user's to mend, and what is finished is kept.

    Raises:
        UserError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} failed: {error}. Nothing is committed; what is finished is kept; "
            "rerun the same command to resume there"
        ) from None

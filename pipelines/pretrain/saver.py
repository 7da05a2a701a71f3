"""Checkpoints written beside the training, by one thread and one at a time."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from pipelines.models import checkpoint


class CheckpointSaver:
    """Training waits only while the state is copied, and for a write that is still going on."""

    def __init__(
        self,
        stage_uri: str,
        keep: int,
        keep_best: int,
        written: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Write to a stage; keep the newest and, by their score, the best ones.

        `written` is called with the step of each checkpoint, in the thread that has written it.
        """
        self._written = written
        self._stage_uri, self._keep, self._keep_best = stage_uri, keep, keep_best
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[float] | None = None
        self.last_write_s: float | None = None

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.last_write_s = writing.result()

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Begin to write; the tensors and the state must not change afterwards.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, tensors, state)

    def _write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> float:
        began = time.perf_counter()
        checkpoint.save(self._stage_uri, step, tensors, state)
        checkpoint.prune(self._stage_uri, step, self._keep, self._keep_best)
        self._written(step)
        return time.perf_counter() - began

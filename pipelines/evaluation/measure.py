"""One measurement, wherever Ray runs it: read the data, measure, commit."""

import time
from dataclasses import replace
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.evaluation import encoders, results
from pipelines.evaluation.catalogue import TASKS
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.results import Measured
from pipelines.evaluation.task import Job

TELL_EVERY_S = 1.0


def perform(job: Job, config: EvaluateConfig, mailbox: Any = None) -> str | None:
    """Measure and commit; returns a message instead when the user has to fix something.

    How far a long measurement is goes to the mailbox, at most once a second.
    """
    torch.set_num_threads(config.cpus_per_task)
    told_at = -TELL_EVERY_S

    def tell(text: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            mailbox.post.remote({"job": job.uri, "text": text})

    if mailbox is not None:
        job = replace(job, tell=tell)
    try:
        results.commit(job.uri, measure_job(job, config))
    except UserError as error:
        return str(error)
    return None


def measure_job(job: Job, config: EvaluateConfig) -> Measured:
    """The measurement itself."""
    task = TASKS[job.task]
    dtype = encoders.resolve_precision(config.precision)
    if job.subject is not None and task.seeded:
        task.require_subject(job.subject, config)
    return task.measure(job, config, dtype)

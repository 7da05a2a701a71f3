"""One measurement, wherever Ray runs it: read the data, measure, commit."""

import torch

from pipelines.errors import UserError
from pipelines.evaluation import encoders, results
from pipelines.evaluation.config import TASKS, EvaluateConfig
from pipelines.evaluation.results import Measured
from pipelines.evaluation.task import Job


def perform(job: Job, config: EvaluateConfig) -> str | None:
    """Measure and commit; returns a message instead when the user has to fix something."""
    torch.set_num_threads(config.cpus_per_task)
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

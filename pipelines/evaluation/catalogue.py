"""Every task of the evaluation by its name."""

from typing import get_args

from pipelines.evaluation.settings import TaskName
from pipelines.evaluation.task import EvaluationTask
from pipelines.evaluation.tasks import (
    detection,
    finetune,
    inpainting,
    probes,
    retrieval,
    segmentation,
)

TASKS: dict[TaskName, EvaluationTask] = {
    task.name: task
    for task in (
        inpainting.TASK,
        probes.LINEAR,
        probes.KNN,
        finetune.TASK,
        detection.TASK,
        segmentation.TASK,
        retrieval.TASK,
    )
}
assert tuple(TASKS) == get_args(TaskName)

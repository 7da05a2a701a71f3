#!/usr/bin/env python3
"""From images to a champion: prepare, pretrain, evaluate, promote; only what is missing.

$ python jobs/workflow.py --source IMAGES --pretrain.steps 2000
$ python jobs/workflow.py --source IMAGES --plan
$ ray job submit --working-dir . -- jobs/workflow.py --source s3://bucket/photos \
    --store s3://bucket/store --until evaluate
"""

from pipelines.cli import main
from pipelines.workflow.config import WorkflowConfig


def run(config: WorkflowConfig) -> object:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_workflow
    from pipelines.workflow.run import run_workflow

    result = run_workflow(config)
    after_workflow(config, result)
    return result


if __name__ == "__main__":
    main(run, WorkflowConfig)

#!/usr/bin/env python3
"""From images to a champion: prepare, pretrain, evaluate, promote; only what is missing.

$ python jobs/workflow.py --source PICTURES --pretrain.steps 2000
$ python jobs/workflow.py --source PICTURES --plan
$ ray job submit --working-dir . -- jobs/workflow.py --source s3://bucket/photos \
    --store s3://bucket/store --until evaluate
"""

from pipelines.cli import main
from pipelines.workflow.run import WorkflowConfig, run_workflow

if __name__ == "__main__":
    main(run_workflow, WorkflowConfig)

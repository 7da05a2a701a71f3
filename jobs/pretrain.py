#!/usr/bin/env python3
"""Pretrain a context encoder, on sample images or on yours.

$ python jobs/pretrain.py --config configs/quickstart.yaml
$ ray job submit --working-dir . -- jobs/pretrain.py --source s3://bucket/photos \
    --store s3://bucket/store
"""

from pipelines.cli import main
from pipelines.pretrain.config import PretrainConfig


def run(config: PretrainConfig) -> object:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_pretrain
    from pipelines.workflow.ensure_dataset import pretrain_on_source

    result = pretrain_on_source(config)
    after_pretrain(config, result)
    return result


if __name__ == "__main__":
    main(run, PretrainConfig)

#!/usr/bin/env python3
"""Prepare images for training: any source -> checked, shuffled Parquet shards with masks.

$ python jobs/prepare.py --source photos --output datasets/photos
"""

from pipelines.cli import main
from pipelines.prepare.config import PrepareConfig


def run(config: PrepareConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_prepare
    from pipelines.prepare.run import prepare_dataset

    after_prepare(config, prepare_dataset(config))


if __name__ == "__main__":
    main(run, PrepareConfig)

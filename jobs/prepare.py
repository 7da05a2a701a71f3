#!/usr/bin/env python3
"""Prepare images for training: any source -> checked, shuffled Parquet shards with masks.

$ python jobs/prepare.py --source photos --output datasets/photos
"""

from pipelines.cli import main
from pipelines.prepare.config import PrepareConfig
from pipelines.prepare.run import prepare_dataset

if __name__ == "__main__":
    main(prepare_dataset, PrepareConfig)

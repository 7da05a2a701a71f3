#!/usr/bin/env python3
"""Prepare pictures for training: any source -> checked, shuffled Parquet shards with masks.

$ python jobs/prepare.py --source photos --output datasets/photos
"""

from pipelines.cli import main
from pipelines.prepare import PrepareConfig, run

if __name__ == "__main__":
    main(run, PrepareConfig)

#!/usr/bin/env python3
"""Remove from a store what nothing needs: spare checkpoints, left work, unused datasets.

$ python jobs/clean.py --store s3://bucket/store --dry-run True
$ python jobs/clean.py --store s3://bucket/store --older-than-days 14
"""

from pipelines.clean.config import CleanConfig
from pipelines.cli import main


def run(config: CleanConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.clean.run import clean_store

    clean_store(config)


if __name__ == "__main__":
    main(run, CleanConfig)

#!/usr/bin/env python3
"""Make a run's model the champion if every gate holds; roll back; explain.

$ python jobs/promote.py --run RUN --name context-encoder --gates configs/gates.yaml
$ python jobs/promote.py --name context-encoder --rollback
$ python jobs/promote.py --explain models:/context-encoder@champion

Exit codes: 0 done, 3 refused by a gate, 4 the run or that of the champion was deleted, 1 a mistake
that the message names, 2 a flag.
"""

from pipelines.cli import main
from pipelines.promotion.config import PromoteConfig


def run(config: PromoteConfig) -> None:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_promote
    from pipelines.promotion.run import run_promotion

    after_promote(config, fills=run_promotion(config))


if __name__ == "__main__":
    main(run, PromoteConfig)

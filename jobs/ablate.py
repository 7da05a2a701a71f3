#!/usr/bin/env python3
"""Compare mask strategies and losses, with seeds and error bars.

$ python jobs/ablate.py --strategies central random_block random_region --adversarial 0 0.001
$ ray job submit --working-dir . -- jobs/ablate.py --config configs/ablation_nightly.yaml \
    --store s3://bucket/store --tick nightly
"""

from pipelines.ablation.config import AblateConfig
from pipelines.cli import main


def run(config: AblateConfig) -> object:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.ablation.run import run_ablation
    from pipelines.closing import after_ablate

    result = run_ablation(config)
    after_ablate(config, result)
    return result


if __name__ == "__main__":
    main(run, AblateConfig)

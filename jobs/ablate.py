#!/usr/bin/env python3
"""Compare mask strategies and losses, with seeds and error bars.

$ python jobs/ablate.py --strategies central random_block random_region --adversarial 0 0.001
$ ray job submit --working-dir . -- jobs/ablate.py --config configs/ablation_nightly.yaml \
    --store s3://bucket/store --tick nightly
"""

from pipelines.ablation.config import AblateConfig
from pipelines.ablation.run import run_ablation
from pipelines.cli import main

if __name__ == "__main__":
    main(run_ablation, AblateConfig)

#!/usr/bin/env python3
"""Measure models: how well they fill holes, and what their features are worth.

$ python jobs/evaluate.py --model store/pretrain/KEY --tasks inpainting linear knn --data DATASET
$ ray job submit --working-dir . -- jobs/evaluate.py --config configs/evaluate.yaml --model RUN \
    --store s3://bucket/store
"""

from pipelines.cli import main
from pipelines.evaluation.config import EvaluateConfig


def run(config: EvaluateConfig) -> object:
    """Import what works only now, so that `--help` waits for nothing."""
    from pipelines.closing import after_evaluate
    from pipelines.evaluation.run import evaluate_models

    result = evaluate_models(config)
    after_evaluate(config, result)
    return result


if __name__ == "__main__":
    main(run, EvaluateConfig)

"""Evaluation as a stage of a graph, for the workflow and for sweeps.

A stage's result says in `delivered` whether MLflow has all of it: until then it is not final, and
the next run of the graph looks at it again.
"""

from dataclasses import replace
from typing import Any

from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.run import evaluate_models
from pipelines.workflow import graph


def evaluate(config: EvaluateConfig, name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a trained model under a name: by its MLflow run, or by its folder until then."""
    model = summary["tracking_run_id"] if graph.is_delivered(summary) else summary["model"]
    return evaluate_models(replace(config, model=(f"{name}={model}",)))

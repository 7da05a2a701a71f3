"""Models as files: weights, checkpoints, references, the MLflow flavour."""

"""MLflow: client, runs, recorder, logged models, registry, scores."""

"""MLflow's own variables, which schedulers and notebooks set: each is used, or its loss is told."""

import os

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError, redact
from pipelines.runtime.environment import tell_once

DEFAULT_EXPERIMENT = "context-encoder"
PARENT_TAG = "mlflow.parentRunId"


def tell_ignored(uri: str) -> None:
    """Say, once, which of MLflow's variables say something that is not followed."""
    registry = redact(os.environ.get("MLFLOW_REGISTRY_URI", ""))
    if registry not in ("", uri):
        tell_once(
            f"MLFLOW_REGISTRY_URI is '{registry}', which is not used: models are registered at the "
            f"tracking server, {uri}"
        )


def experiment_name(server: MlflowClient, requested: str) -> str:
    """The experiment: what was asked for, or instead of the default what the environment says.

    Raises:
        UserError: MLFLOW_EXPERIMENT_ID is of no experiment of the server.
    """
    if requested != DEFAULT_EXPERIMENT:
        return requested
    if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        tell_once(f"MLFLOW_EXPERIMENT_NAME is '{name}': runs go to that experiment")
        return name
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        try:
            found = server.get_experiment(number)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(
                f"MLFLOW_EXPERIMENT_ID is '{number}', which the tracking server does not have; "
                "unset it, or give --experiment NAME"
            ) from None
        tell_once(f"MLFLOW_EXPERIMENT_ID is '{number}': runs go to '{found.name}'")
        return str(found.name)
    return requested


def parent_tags(server: MlflowClient) -> dict[str, str]:
    """The tag that puts a new run below that of MLFLOW_RUN_ID, which a scheduler has begun."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return {}
    try:
        server.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        tell_once(f"MLFLOW_RUN_ID is '{run_id}', which the tracking server does not have: not used")
        return {}
    tell_once(
        f"MLFLOW_RUN_ID is '{run_id}': the same work has the same run here, so this job's runs lie "
        "below that one, which whoever began it has to end"
    )
    return {PARENT_TAG: run_id}

"""What a scheduler says to MLflow is followed, or said not to be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipelines.errors import UserError
from pipelines.runtime.environment import tell_once
from pipelines.tracking import environment
from pipelines.tracking.client import tracking_uri
from pipelines.tracking.environment import experiment_name, parent_tags


class Server:
    """Knows experiment 7 and the run `known`."""

    def get_experiment(self, number: str) -> Any:
        return SimpleNamespace(name="by number") if number == "7" else self.refuse()

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace() if run_id == "known" else self.refuse()

    def refuse(self) -> Any:
        raise MlflowException("nothing there", error_code=RESOURCE_DOES_NOT_EXIST)


SERVER: Any = Server()


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID", "REGISTRY_URI", "TRACKING_URI"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    tell_once.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [("EXPERIMENT_NAME", "team-exp", "team-exp"), ("EXPERIMENT_ID", "7", "by number")],
)
def test_the_experiment_of_the_environment_stands_for_the_default(
    variable: str, value: str, name: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert experiment_name(SERVER, "context-encoder") == "context-encoder"
    monkeypatch.setenv(f"MLFLOW_{variable}", value)
    assert experiment_name(SERVER, "context-encoder") == name
    assert experiment_name(SERVER, "asked") == "asked"
    said = capsys.readouterr().err
    assert f"MLFLOW_{variable} is '{value}'" in said and len(said.splitlines()) == 1


def test_an_experiment_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "8")
    with pytest.raises(UserError, match=r"MLFLOW_EXPERIMENT_ID is '8'.*--experiment"):
        experiment_name(SERVER, environment.DEFAULT_EXPERIMENT)


def test_the_run_of_a_scheduler_becomes_the_parent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parent_tags(SERVER) == {}
    monkeypatch.setenv("MLFLOW_RUN_ID", "known")
    assert parent_tags(SERVER) == {"mlflow.parentRunId": "known"}
    monkeypatch.setenv("MLFLOW_RUN_ID", "elsewhere")
    assert parent_tags(SERVER) == {}
    assert "not used" in capsys.readouterr().err


def test_a_registry_apart_is_told_not_to_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://a:pw@registry")
    for _ in range(2):
        tracking_uri("http://server", str(tmp_path))
    said = capsys.readouterr().err
    assert said.count("MLFLOW_REGISTRY_URI is 'http://registry', which is not used") == 1
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://server")
    tracking_uri("http://server", str(tmp_path))
    assert capsys.readouterr().err == ""

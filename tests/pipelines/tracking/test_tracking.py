"""The recorder: an absent server delays the curves and costs nothing else."""

import io
import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from benchmarks.local_server import free_port, mlflow_server_command
from pipelines import storage
from pipelines.errors import UserError
from pipelines.tracking import models, runs
from pipelines.tracking.client import SQLITE, client, global_server, tracking_uri
from pipelines.tracking.recorder import Recorder
from pipelines.tracking.runs import RunSpec


def make_spec(uri: str, store: Path) -> RunSpec:
    return RunSpec(
        uri=uri,
        store=str(store),
        experiment="tests",
        key="k" * 64,
        name="run",
        params={f"p{number}": number for number in range(150)},  # above one request's limit
        tags={"stage": "test"},
        dataset_uri=str(store),
        dataset_fingerprint="f" * 64,
    )


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return tracking_uri(None, str(tmp_path))


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client(uri).get_metric_history(run_id, key)]


def test_everything_arrives_once(sqlite: str, tmp_path: Path) -> None:
    recorder = Recorder(make_spec(sqlite, tmp_path))
    for step in range(600):
        recorder.metrics({"a": step / 2, "b": -step, "c": float("nan")}, step)
    recorder.artifact("deep/file.txt", b"hello")
    recorder.tag("colour", "red")
    outcome = recorder.finish("FINISHED")
    assert outcome.problem is None and outcome.run_id is not None
    assert points(sqlite, outcome.run_id, "a") == [(step, step / 2) for step in range(600)]
    run = client(sqlite).get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 150
    assert run.data.tags["colour"] == "red"
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.name"] in sys.argv[0]
    assert "c" not in run.data.metrics
    assert [a.path for a in client(sqlite).list_artifacts(outcome.run_id, "deep")] == [
        "deep/file.txt"
    ]


def test_an_image_of_a_step_is_stored_once(sqlite: str, tmp_path: Path) -> None:
    """A resumed training makes those after its checkpoint again."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "png")
    for _ in range(2):
        recorder = Recorder(make_spec(sqlite, tmp_path))
        for step in (0, 10):
            recorder.image("panel", step, png.getvalue())
        outcome = recorder.finish("FINISHED")
        assert outcome.problem is None and outcome.run_id is not None
    found = [each.path for each in client(sqlite).list_artifacts(outcome.run_id, "images")]
    full = sorted(path for path in found if path.endswith(".png"))
    assert [path.partition("+timestamp")[0] for path in full] == [
        "images/panel+step+0",
        "images/panel+step+10",
    ]


def test_a_run_without_a_known_commit_gets_the_first_that_is_known(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for commit in ("unknown", "a" * 40, "b" * 40):
        monkeypatch.setattr(runs, "git_commit", lambda commit=commit: commit)
        run_id = runs.ensure_run(make_spec(sqlite, tmp_path))
        found.append(client(sqlite).get_run(run_id).data.tags[runs.COMMIT_TAG])
    assert found == ["unknown", "a" * 40, "a" * 40]


@pytest.mark.parametrize("fault", [1, 2, 3])  # two requests with parameters, one with the dataset
def test_what_a_fault_left_out_of_a_new_run_comes_later(
    fault: int, sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = itertools.count(1)
    for name in ("log_batch", "log_inputs"):
        real = getattr(MlflowClient, name)

        def request(*args: Any, real: Any = real, **kwargs: Any) -> None:
            if next(requests) == fault:
                raise MlflowException("nobody answers")
            real(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, request)
    spec = make_spec(sqlite, tmp_path)
    with pytest.raises(MlflowException):
        runs.ensure_run(spec)
    for _ in range(2):
        run = client(sqlite).get_run(runs.ensure_run(spec))
        assert run.data.params == {name: str(value) for name, value in spec.params.items()}
        assert [found.dataset.digest for found in run.inputs.dataset_inputs] == ["f" * 36]


def test_steps_made_again_before_the_first_delivery_come_once(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, ensure = threading.Event(), runs.ensure_run
    monkeypatch.setattr(runs, "ensure_run", lambda spec: there.wait(20) and ensure(spec))
    recorder = Recorder(make_spec(sqlite, tmp_path))
    for begun, steps in ((1.0, range(3)), (2.0, range(1, 5))):  # a worker died after step 2
        for step in steps:
            recorder.metrics({"a": step}, step, time_s=begun)
    there.set()
    run_id = recorder.finish("FINISHED").run_id
    assert run_id is not None
    assert points(sqlite, run_id, "a") == [(step, step) for step in range(5)]


def test_a_run_ends_when_it_is_told_to(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(make_spec(sqlite, tmp_path))
    recorder.metrics({"a": 1}, 1)
    run_id, problem = recorder.flush(wait_s=60)
    assert problem is None and run_id is not None
    assert points(sqlite, run_id, "a") == [(1, 1)]
    logged = SimpleNamespace(model_uri="models:/m-1")
    monkeypatch.setattr(mlflow.pyfunc, "log_model", lambda **_: logged)
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    models.log_model(sqlite, run_id, tmp_path, 128, [])
    server = client(sqlite)
    assert server.get_run(run_id).info.status == "RUNNING"
    assert recorder.finish(None).problem is None
    assert server.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("status", "data", "kept"),
    [
        ("READY", b"weights", True),
        ("FAILED", b"weights", False),
        (None, b"weights", False),  # its upload has not ended
        ("READY", b"others", False),  # trained again on another machine
    ],
)
def test_a_run_keeps_its_model_if_it_is_whole_and_of_the_same_weights(
    status: Any, data: bytes, kept: bool, sqlite: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_id = runs.ensure_run(make_spec(sqlite, tmp_path))
    other_id = runs.ensure_run(replace(make_spec(sqlite, tmp_path), key="o" * 64))
    (tmp_path / "weights.safetensors").write_bytes(data)
    server = client(sqlite)
    made = server.create_logged_model(
        server.get_run(run_id).info.experiment_id, "model", source_run_id=run_id,
        tags={models.WEIGHTS_TAG: storage.sha256_of_bytes(b"weights")},
    )  # fmt: skip
    if status is not None:
        server.finalize_logged_model(made.model_id, status)
    new = SimpleNamespace(model_uri="models:/m-new")
    monkeypatch.setattr(mlflow.pyfunc, "log_model", lambda **_: new)
    found = models.log_model(sqlite, run_id, tmp_path, 128, [])
    assert found == (made.model_uri if kept else "models:/m-new")
    assert models.log_model(sqlite, other_id, tmp_path, 128, []) == "models:/m-new"


def test_a_replayed_history_adds_only_what_is_missing(sqlite: str, tmp_path: Path) -> None:
    ids = set()
    for last in (4, 7, 7):
        recorder = Recorder(make_spec(sqlite, tmp_path))
        for step in range(last):
            recorder.metrics({"a": step}, step)
        ids.add(recorder.finish("FINISHED").run_id)
    (run_id,) = ids  # the key found the run again
    assert run_id is not None
    assert points(sqlite, run_id, "a") == [(step, step) for step in range(7)]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator["Relay"]:
    relay = Relay(tmp_path)
    yield relay
    relay.close()


class Relay:
    """A real MLflow server that can be taken away: nobody listens until `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        backend = f"sqlite:///{self.folder}/server.db"
        command = mlflow_server_command(self.folder, backend, self.port)
        with (self.folder / "server.log").open("wb") as log:
            self.server = subprocess.Popen(command, stdout=log, stderr=log)

    def close(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)


@pytest.mark.slow  # the server takes half a minute to start
def test_a_server_that_comes_late_gets_everything_and_nobody_waited(relay: Relay) -> None:
    recorder = Recorder(make_spec(relay.uri, relay.folder))
    began = time.monotonic()
    for step in range(300):
        recorder.metrics({"a": step}, step)
    recorder.artifact("note.txt", b"late")
    assert time.monotonic() - began < 1.0
    assert recorder.run_id is None
    starting = threading.Timer(1.0, relay.start)
    starting.start()
    outcome = recorder.finish("FINISHED", wait_s=90)
    starting.join()
    assert outcome.problem is None and outcome.run_id is not None
    assert points(relay.uri, outcome.run_id, "a") == [(step, step) for step in range(300)]
    files = client(relay.uri).list_artifacts(outcome.run_id)
    assert [file.path for file in files] == ["note.txt"]


def test_a_server_that_never_comes_is_named(tmp_path: Path) -> None:
    recorder = Recorder(make_spec(f"http://127.0.0.1:{free_port()}", tmp_path))
    recorder.metrics({"a": 1}, 1)
    assert recorder.flush(wait_s=0.5).problem is not None
    outcome = recorder.finish("FINISHED", wait_s=3)
    assert outcome.run_id is None
    assert outcome.problem is not None and "127.0.0.1" in outcome.problem


def test_the_tracking_server_is_the_flag_then_the_environment_then_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking_uri(None, str(tmp_path)) == "http://elsewhere"
    assert tracking_uri("http://here", str(tmp_path)) == "http://here"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="--tracking-uri"):
        tracking_uri(None, "s3://bucket/store")


def test_looking_up_a_run_makes_no_store(tmp_path: Path) -> None:
    uri = tracking_uri(f"{SQLITE}{tmp_path / 'new' / 'mlflow.db'}", "store")
    assert runs.run_of_key(uri, "k") is None
    with pytest.raises(UserError, match="nothing was recorded in that store"):
        models.run_summary(uri, "f" * 32)
    with pytest.raises(UserError, match="nothing was recorded in that store"):
        models.download_model(uri, "models:/m@champion", tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mistake", ["localhost:5000", "sqllite:///mlflow.db", "mlruns", "file:///tmp/runs", "http://["]
)
def test_what_is_no_tracking_server_is_refused_before_anything_runs(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"tracking_uri is .* must be http"):
        tracking_uri(mistake, str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mistake)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        tracking_uri(None, str(tmp_path))


@pytest.mark.parametrize("server", ["https://host", "postgresql+psycopg2://h/db", "databricks"])
def test_every_server_that_mlflow_knows_may_be_named(server: str, tmp_path: Path) -> None:
    assert tracking_uri(server, str(tmp_path)) == server


def test_only_requests_see_the_password_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    given = "http://alice:s3cr3t-PW@127.0.0.1:9/"
    shown = tracking_uri(given, str(tmp_path))
    assert shown == "http://127.0.0.1:9/"
    assert client(shown).tracking_uri == given
    monkeypatch.setattr("mlflow.set_tracking_uri", asked.append)
    with global_server(shown):
        assert asked == [given]


def test_a_run_tells_no_password(sqlite: str, tmp_path: Path) -> None:
    secret = "ftp://alice:s3cr3t-PW@host/x"
    spec = replace(
        make_spec(sqlite, tmp_path),
        params={"source": secret, "many": (secret, 1)},
        tags={"from": secret},
        dataset_uri=secret,
    )
    recorder = Recorder(spec)
    recorder.tag("later", secret)
    run_id = recorder.finish("FINISHED").run_id
    assert run_id is not None
    assert client(sqlite).get_run(run_id).data.params["source"] == "ftp://host/x"
    assert b"s3cr3t" not in (tmp_path / "mlflow.db").read_bytes()


@pytest.mark.parametrize("name", ["what?", "50%25", "%41"])
def test_a_store_whose_sqlite_file_would_lie_elsewhere_is_refused(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"store is .* another folder"):
        tracking_uri(None, str(tmp_path / name))
    assert not list(tmp_path.iterdir())
    assert tracking_uri("http://here", str(tmp_path / name)) == "http://here"


@pytest.mark.parametrize("written", ["{}", "file://{}"])
def test_a_store_on_this_machine_holds_its_artifacts_however_it_is_written(
    written: str, tmp_path: Path
) -> None:
    store = written.format(tmp_path / "a store, 100% #1")
    server = client(tracking_uri(None, store))
    run = server.create_run(runs.experiment_id(server, "tests", store))
    runs.log_bytes(server, run.info.run_id, "deep/note.txt", b"hello")
    (file,) = (tmp_path / "a store, 100% #1" / "mlartifacts").rglob("note.txt")
    assert file.read_bytes() == b"hello"
    assert [path.name for path in tmp_path.iterdir()] == ["a store, 100% #1"]


def test_a_deleted_experiment_is_named_with_what_to_do(sqlite: str, tmp_path: Path) -> None:
    server = client(sqlite)
    server.delete_experiment(runs.experiment_id(server, "tests", str(tmp_path)))
    outcome = Recorder(make_spec(sqlite, tmp_path)).finish("FINISHED", wait_s=3)
    assert outcome.run_id is None
    assert outcome.problem is not None and "experiments restore" in outcome.problem
    assert "--experiment" in outcome.problem


def test_a_database_that_fails_is_told_in_one_line_and_once(
    sqlite: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = client(sqlite)
    runs.experiment_id(server, "tests", str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("DROP TABLE experiment_tags")
    capfd.readouterr()
    outcome = Recorder(make_spec(sqlite, tmp_path)).finish("FINISHED", wait_s=3)
    assert outcome.problem is not None
    assert outcome.problem.endswith("no such table: experiment_tags")
    assert capfd.readouterr() == ("", "")


def test_a_refusal_is_raised_and_a_server_that_is_away_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Exception | None] = {
        "refused": UserError("experiment is 'x', which was deleted"),
        "away": MlflowException("nobody answers"),
        "there": None,
    }

    def ensure(spec: RunSpec) -> str:
        if error := found[spec.key]:
            raise error
        return "run"

    monkeypatch.setattr("pipelines.tracking.recorder.ensure_run", ensure)
    monkeypatch.setattr("pipelines.tracking.recorder.client", lambda _: None)
    spec = make_spec("http://127.0.0.1:9", tmp_path)
    with pytest.raises(UserError, match="which was deleted"):
        Recorder(replace(spec, key="refused")).begin(20)
    assert "nobody answers" in str(Recorder(replace(spec, key="away")).begin(20))
    assert Recorder(replace(spec, key="there")).begin(20) is None

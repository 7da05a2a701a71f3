"""Whose a run is: two stores on one server have one each, and what a dead job leaves is ended."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipelines import storage
from pipelines.errors import UserError
from pipelines.tracking import recorder, runs
from pipelines.tracking.client import client, require_access, tracking_uri
from pipelines.tracking.recorder import Recorder
from pipelines.tracking.runs import ALIVE_TAG, OWNER_TAG, STORE_TAG, RunSpec


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that several stores share, as a server's."""
    return f"sqlite:///{tmp_path_factory.mktemp('server')}/shared.db"


def make_spec(uri: str, store: Path, key: str) -> RunSpec:
    store.mkdir(exist_ok=True)
    return RunSpec(
        uri=uri, store=str(store), experiment="e", key=key, name="n", params={"store": str(store)}
    )


def test_equal_work_of_two_stores_has_two_runs(server_uri: str, tmp_path: Path) -> None:
    here, there = (make_spec(server_uri, tmp_path / name, "two") for name in ("a", "b"))
    ids = [runs.ensure_run(spec) for spec in (here, there, here, there)]
    assert ids[:2] == ids[2:] and len(set(ids)) == 2
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = replace(here, store=str(tmp_path / "moved"))
    assert runs.ensure_run(moved) == ids[0]
    found = storage.find_store_id(moved.store)
    assert found is not None
    assert runs.run_of_key(server_uri, "two", found) == ids[0]
    assert runs.run_of_key(server_uri, "two", storage.find_store_id(there.store)) == ids[1]
    assert runs.run_of_key(server_uri, "two") == ids[0]


@pytest.mark.parametrize("names_its_store", [True, False])
def test_a_run_of_before_belongs_to_the_store_that_it_names(
    names_its_store: bool, server_uri: str, tmp_path: Path
) -> None:
    key = f"before-{names_its_store}"
    here, there = (make_spec(server_uri, tmp_path / name, key) for name in ("a", "b"))
    if not names_its_store:
        here, there = replace(here, params={}), replace(there, params={})
    run_id = runs.ensure_run(here)
    client(server_uri).delete_tag(run_id, STORE_TAG)
    (tmp_path / "a" / "store.json").unlink()
    if names_its_store:
        assert runs.ensure_run(there) != run_id
        assert runs.ensure_run(here) == run_id
    else:  # the first that asks has it from then on
        assert runs.ensure_run(there) == run_id
        assert runs.ensure_run(here) != run_id


def test_a_place_that_is_no_store_yet_gets_no_file(server_uri: str, tmp_path: Path) -> None:
    spec = replace(make_spec(server_uri, tmp_path, "none"), store=str(tmp_path / "new"))
    assert STORE_TAG not in client(server_uri).get_run(runs.ensure_run(spec)).data.tags
    assert list(tmp_path.iterdir()) == []


def test_runs_of_dead_jobs_are_ended_and_no_others(server_uri: str, tmp_path: Path) -> None:
    server = client(server_uri)
    host, dead = socket.gethostname(), 2**22 + 1  # above every process id
    later, past = str(int(time.time() + 100)), str(int(time.time() - 1))
    states = {
        "gone": (f"{host}/{dead}/x", later, "KILLED"),
        "here": (f"{host}/{os.getpid()}/x", later, "RUNNING"),
        "silent": (f"elsewhere/{dead}/x", past, "KILLED"),
        "elsewhere": (f"elsewhere/{dead}/x", later, "RUNNING"),
    }
    ids = {}
    for name, (owner, until, _) in states.items():
        spec = replace(make_spec(server_uri, tmp_path, name), experiment="dead", name=name)
        ids[name] = runs.ensure_run(spec)
        server.set_tag(ids[name], OWNER_TAG, owner)
        server.set_tag(ids[name], ALIVE_TAG, until)
    told: list[str] = []
    one = Recorder(replace(spec, key="next", name="next"), tell=told.append)
    assert one.finish("FINISHED").problem is None
    assert {name: server.get_run(ids[name]).info.status for name in states} == {
        name: status for name, (_, _, status) in states.items()
    }
    assert sorted(line.split()[2] for line in told) == ["gone", "silent"]


def test_an_absence_and_its_end_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    away.set()

    def ensure(spec: RunSpec) -> str:
        if away.is_set():
            raise MlflowException("nobody answers")
        return "run"

    told: list[str] = []
    for name, value in (("RETRY_WAIT_S", 0.01), ("TELL_AFTER_S", 0.05)):
        monkeypatch.setattr(recorder, name, value)
    monkeypatch.setattr(recorder, "ensure_run", ensure)
    monkeypatch.setattr(recorder, "end_abandoned", lambda *_: [])
    monkeypatch.setattr(recorder, "client", lambda _: None)
    one = Recorder(make_spec("http://127.0.0.1:9", tmp_path, "k"), tell=told.append)
    one.flush(0.3)
    away.clear()
    assert one.flush(20).problem is None
    one.finish(None)
    assert [line.split(" (")[0] for line in told] == [
        "warning: MLflow does not answer",
        "MLflow answers again: it has everything that waited",
    ]


class _Locked(BaseHTTPRequestHandler):
    """A server with a login, as MLflow's own answers."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def locked_uri() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Locked)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_login_is_asked_for_before_the_work(locked_uri: str, tmp_path: Path) -> None:
    uri = tracking_uri(locked_uri, str(tmp_path))
    for ask in (require_access, lambda uri: Recorder(make_spec(uri, tmp_path, "k")).begin(20)):
        with pytest.raises(UserError, match=r"does not let this job in .*MLFLOW_TRACKING_USERNAME"):
            ask(uri)
    one = Recorder(make_spec(uri, tmp_path, "k"))
    one.metrics({"a": 1.0}, 1)
    began = time.monotonic()
    problem = one.finish("FAILED", wait_s=60).problem  # refused for good: nothing to wait for
    assert problem is not None and "not authenticated" in problem
    assert time.monotonic() - began < 30

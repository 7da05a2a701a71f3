"""Promotion against server processes: SQLite, and PostgreSQL where it is installed. Slow."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import postgres_folder
from promotion_helpers import aliases, ask, log_run, make_home

from benchmarks.local_server import free_port, mlflow_server_command, process, wait_until_serving
from pipelines.promotion.explain import explain
from pipelines.promotion.run import roll_back

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[str]:
    """A tracking server of this test alone; ended by its id."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with process(mlflow_server_command(folder, backend, port), log) as started:
        wait_until_serving(f"{uri}/health", started, log)
        yield uri


def walk_through(uri: str, folder: Path) -> None:
    """Promote, refuse, roll back."""
    home = make_home(uri, folder)
    good = log_run(home, "good", 0, 15.0)
    log_run(home, "good", 1, 15.1)
    better = log_run(home, "better", 0, 16.0)
    log_run(home, "better", 1, 16.1)
    assert ask(home, good, "served").promoted
    assert ask(home, better, "served").promoted
    refused = ask(home, good, "served")
    assert not refused.promoted and "worse" in refused.text
    roll_back(uri, "served", str(folder))
    assert aliases(home, "served")["champion"] == "1"
    assert good in explain(uri, "models:/served@champion")


def test_promotion_through_a_server_with_sqlite(tmp_path: Path) -> None:
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/server.db") as uri:
        walk_through(uri, tmp_path)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of this test alone, as a user without rights (it refuses to run as root)."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    programs = postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    # Not under tmp_path, which other users cannot enter.
    home, port = Path(tempfile.mkdtemp(prefix="ce-postgres-")), free_port()
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    data = home / "data"
    usual = {"check": True, "user": user, "cwd": home, "capture_output": True}
    subprocess.run([programs / "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "-N"], **usual)  # type: ignore[call-overload]
    database = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-k", home, "-h", "127.0.0.1"],
        user=user, cwd=home, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, capture_output=True).returncode:
            assert time.monotonic() < deadline and database.poll() is None
            time.sleep(0.3)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        database.send_signal(signal.SIGINT)
        database.wait(60)
        shutil.rmtree(home)


def test_promotion_through_a_server_with_postgresql(tmp_path: Path) -> None:
    with postgres(tmp_path) as backend, mlflow_server(tmp_path, backend) as uri:
        walk_through(uri, tmp_path)

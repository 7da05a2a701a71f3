"""A store's SQLite file is whole or not there, whoever is killed and however many start at once."""

import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.tracking import mlflow_internals, runs, sqlite_file
from pipelines.tracking.client import client

MIGRATION = "CREATE TABLE _alembic_tmp_metrics (a INT)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a new database: making one takes seconds."""
    file = tmp_path_factory.mktemp("whole") / "mlflow.db"
    sqlite_file.ensure_database(file)
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]
    return file.read_bytes()


def run_sql(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)


def age(file: Path) -> None:
    os.utime(file, (1e9, 1e9))


def test_mlflow_takes_the_file_that_was_made(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(whole)
    assert sqlite_file.is_whole(tmp_path / "mlflow.db")
    server = client(f"sqlite:///{tmp_path}/mlflow.db")
    assert server.get_run(server.create_run("0").info.run_id).info.status == "RUNNING"


def test_a_process_killed_while_it_makes_the_file_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path) -> None:
        run_sql(file, MIGRATION)
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow_internals, "make_database", killed)
    with pytest.raises(KeyboardInterrupt):
        sqlite_file.ensure_database(tmp_path / "deep" / "mlflow.db")
    assert list((tmp_path / "deep").iterdir()) == []


def test_of_jobs_that_start_at_once_one_makes_the_file_of_all(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(file: Path) -> None:
        file.write_bytes(whole)
        run_sql(file, f"CREATE TABLE maker_{file.name.rsplit('.', 2)[1]} (a INT)")

    monkeypatch.setattr(mlflow_internals, "make_database", make)
    file = tmp_path / "mlflow.db"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sqlite_file.ensure_database, [file] * 8))
    with closing(sqlite3.connect(file)) as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    assert sum(name.startswith("maker_") for (name,) in tables) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("what", ["empty", "between migrations", "in a migration"])
def test_a_half_made_file_without_runs_is_named_and_replaced(
    what: str, tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(mlflow_internals, "make_database", lambda file: file.write_bytes(whole))
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"" if what == "empty" else whole)
    if what == "between migrations":
        run_sql(file, "UPDATE alembic_version SET version_num = 'older'")
    elif what == "in a migration":
        run_sql(file, MIGRATION)
    age(file)
    sqlite_file.ensure_database(file)
    assert file.read_bytes() == whole
    (aside,) = (path for path in tmp_path.iterdir() if path != file)
    said = " ".join(capsys.readouterr().err.split())
    assert aside.name.startswith("mlflow.db.unfinished-") and aside.name in said


def test_a_half_made_file_with_runs_is_left_and_told(tmp_path: Path, whole: bytes) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(whole)
    run_sql(file, MIGRATION, "INSERT INTO runs (run_uuid, lifecycle_stage) VALUES ('a', 'active')")
    age(file)
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"holds 1 runs .*mlflow db upgrade"):
        sqlite_file.ensure_database(file)
    assert file.read_bytes() == before


def test_a_file_that_another_program_is_making_is_awaited(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(whole)
    run_sql(file, MIGRATION)
    clock = SimpleNamespace(time=time.time, sleep=lambda _: file.write_bytes(whole))
    monkeypatch.setattr(sqlite_file, "time", clock)  # this module's alone: other threads sleep too
    sqlite_file.ensure_database(file)
    assert file.read_bytes() == whole


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("hello, this is no database" * 99)
    with pytest.raises(UserError, match="is no SQLite database"):
        sqlite_file.ensure_database(tmp_path / "mlflow.db")


def test_a_locked_file_may_pass(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_S", 0.1)
    file = tmp_path / "mlflow.db"
    file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MlflowException, match="locked"):
            sqlite_file.ensure_database(file)


def test_a_moved_store_finds_its_artifacts(
    tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old store", tmp_path / "new"
    (old / "mlartifacts").mkdir(parents=True)
    (old / "mlflow.db").write_bytes(whole)
    server = client(f"sqlite:///{old}/mlflow.db")
    experiment = server.create_experiment("e", artifact_location=(old / "mlartifacts").as_uri())
    run_id = server.create_run(experiment).info.run_id
    elsewhere = server.create_run(server.create_experiment("f", artifact_location="s3://b/a"))
    runs.log_bytes(server, run_id, "deep/note.txt", b"hello")
    sqlite_file.ensure_database(old / "mlflow.db")
    old.rename(new)
    for _ in range(2):
        sqlite_file._usable.clear()
        server = client(f"sqlite:///{new}/mlflow.db")
        assert [each.path for each in server.list_artifacts(run_id, "deep")] == ["deep/note.txt"]
        later = server.get_run(server.create_run(experiment).info.run_id)
        assert later.info.artifact_uri.startswith((new / "mlartifacts").as_uri())
        other = server.get_run(elsewhere.info.run_id)
        assert other.info.artifact_uri.startswith("s3://b/a/")
    assert capsys.readouterr().err.count("the store was moved") == 1

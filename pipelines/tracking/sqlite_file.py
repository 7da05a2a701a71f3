"""A store's own SQLite file: whole or not there.

MLflow makes a new file by some fifty migrations, which are no transaction: a process that is killed
in between, or a second one that starts meanwhile, leaves a database that nobody can use again. So
the file is made under another name and takes its own when it is whole. Of several jobs that start
at once each makes one, and the first wins: a lease would let the others wait for one that was
killed.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.exceptions import MlflowException

from pipelines import storage
from pipelines.errors import UserError
from pipelines.runtime.progress import plain_console
from pipelines.tracking import mlflow_internals

SETTLE_S = 60.0  # another program, such as `mlflow server`, may be at work on a file this young
POLL_S = 0.5
ARTIFACTS = "mlartifacts"  # beside the file
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
LOCK_S = 5.0  # another job may write a moment
HEAD = "SELECT version_num FROM alembic_version"
_usable: set[Path] = set()
"""Files that this process has looked at."""


def ensure_database(file: Path) -> None:
    """Make the file unless there is a usable one.

    A file that a killed job left half made gets another name, if nothing was recorded in it.

    Raises:
        UserError: a half-made one that holds runs, or a file that is no database.
        OSError: the folder cannot be written.
    """
    if not file.exists():
        _make(file)
    elif file not in _usable and not is_whole(file):
        _mend(file)
    if file not in _usable:
        follow_move(file)
    _usable.add(file)


def is_whole(file: Path) -> bool:
    """Whether the schema is the one that this MLflow reads.

    Raises:
        UserError: it is no SQLite database.
    """
    if (found := _revision(file)) is None:
        return False
    return found == mlflow_internals.schema_revision()


def _make(file: Path) -> None:
    try:
        with storage.staged_file(str(file), exclusive=True) as staged:
            mlflow_internals.make_database(staged)
    except FileExistsError:  # another job was first; its file is as whole as this one
        return


def _mend(file: Path) -> None:
    while time.time() - file.stat().st_mtime < SETTLE_S:
        time.sleep(POLL_S)
        if is_whole(file):
            return
    if runs := count_runs(file):
        raise UserError(
            f"'{file}' holds {runs} runs in a schema of another version of MLflow, or one that a "
            "killed migration left: take a copy of it, then try "
            f"mlflow db upgrade sqlite:///{file}, or give another --store or --tracking-uri"
        )
    aside = file.with_name(f"{file.name}.unfinished-{time.strftime('%Y%m%dT%H%M%S')}")
    file.rename(aside)
    plain_console(soft_wrap=True).print(
        f"warning: '{file}' holds no run and a schema that this MLflow does not read, as a killed "
        f"job leaves it; it is now '{aside.name}', and a new one is made"
    )
    _make(file)


def follow_move(file: Path) -> None:
    """Let the records of a store that was moved, or is mounted elsewhere, name its files of today.

    MLflow stores where artifacts lie as whole paths. They are changed only where the folder that
    they name is no longer there and this store has one.
    """
    new = (file.absolute().parent / ARTIFACTS).as_uri()
    if not (file.parent / ARTIFACTS).is_dir():
        return
    with closing(sqlite3.connect(file, timeout=LOCK_S)) as database:
        named = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in named:
            path = url2pathname(urlsplit(old or "").path)
            if not (old or "").endswith(f"/{ARTIFACTS}") or old == new or Path(path).exists():
                continue
            try:
                with database:
                    for table, column in PLACES:
                        database.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )
            except sqlite3.OperationalError as error:
                plain_console(soft_wrap=True).print(
                    f"warning: '{file}' names artifacts at {old}, which is not there any more, and "
                    f"cannot be changed ({error}): what MLflow has stored cannot be read from here"
                )
                return
            plain_console(soft_wrap=True).print(
                f"the store was moved: the records in '{file}' now name {new}, no longer {old}"
            )


def count_runs(file: Path) -> int:
    """Runs that are recorded in a database, whatever its schema."""
    try:
        with _opened(file) as database:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:  # no such table
        return 0


def _revision(file: Path) -> str | None:
    """None before the first migration has ended."""
    try:
        with _opened(file) as database:
            found = database.execute(HEAD).fetchone()
            tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise MlflowException(f"'{file}': {error}") from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"'{file}' is no SQLite database ({error}), but a store's runs are recorded in a file "
            "of that name: put it elsewhere, or name a tracking server with --tracking-uri"
        ) from None
    if any(name.startswith("_alembic_tmp") for (name,) in tables):
        return None
    return None if found is None else str(found[0])


def _opened(file: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_S))

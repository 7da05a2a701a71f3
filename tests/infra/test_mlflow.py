"""The tracking server of infra/: logins and PostgreSQL, started as the manifests do it."""

import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, postgres_folder
from postgres_helpers import postgres

from benchmarks.local_server import free_port, process, wait_until_serving

PLATFORM = ROOT / "infra" / "kubernetes" / "platform"
PASSWORD = "long enough for anybody"
POSTGRES = postgres_folder()

pytestmark = pytest.mark.slow


def deployment() -> dict[str, Any]:
    found = yaml.safe_load_all((PLATFORM / "mlflow.yaml").read_text())
    (pod,) = (d["spec"]["template"]["spec"] for d in found if d["kind"] == "Deployment")
    return dict(pod)


def here(words: list[str], port: int) -> list[str]:
    """The words of a manifest, for a database and a port of this machine."""
    text = "\n".join(words).replace("@postgres/", "@/").replace("0.0.0.0", "127.0.0.1")
    text = re.sub(r"\b5000\b", str(port), text)
    return [sys.executable, "-m", *text.split("\n")]


@contextmanager
def tracking_server(folder: Path, database: dict[str, str]) -> Iterator[str]:
    """Migrated and started with the command lines of mlflow.yaml; its address."""
    folder.mkdir()
    pod, port = deployment(), free_port()
    text = (PLATFORM / "auth.ini").read_text().replace("@postgres/", "@/")
    (folder / "auth.ini").write_text(text)
    (migrate,), (server,) = pod["initContainers"], pod["containers"]
    environment = {
        **database,
        **{e["name"]: e["value"] for e in server["env"] if "value" in e and e["name"] != "HOME"},
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
    }
    done = subprocess.run(
        here(migrate["command"], port), env={**os.environ, **environment}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    uri = f"http://127.0.0.1:{port}"
    words = here([*server["command"], *server["args"]], port)
    words = [w.replace("localhost:", f"127.0.0.1:{port},localhost:", 1) for w in words]
    words = ["--workers=1" if w.startswith("--workers") else w for w in words]
    with process(words, folder / "log", **environment) as started:
        wait_until_serving(f"{uri}/health", started, folder / "log")
        yield uri


def ask(uri: str, login: str | None = None, body: object = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(uri, data, headers), timeout=60) as answer:
        return json.load(answer)


@pytest.mark.skipif(POSTGRES is None, reason="PostgreSQL is not installed")
@pytest.mark.skipif(os.getuid() != 0, reason="the database runs as another user")
@pytest.mark.timeout(900)
def test_logins_postgres_backup_and_restore(tmp_path: Path) -> None:
    """A user who is no admin records and registers; others do not; a dump brings all of it back."""
    user = "trainer:a password of its own"
    name, _, password = user.partition(":")
    with postgres(tmp_path / "pg", PASSWORD, PASSWORD + " 2") as database:
        with tracking_server(tmp_path / "mlflow", database) as uri:
            api = f"{uri}/api/2.0/mlflow"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                ask(f"{api}/experiments/search?max_results=1")
            with pytest.raises(urllib.error.HTTPError, match="401"):
                ask(f"{api}/users/create", None, {"username": "x", "password": PASSWORD})
            admin = f"admin:{PASSWORD}"
            ask(f"{api}/users/create", admin, {"username": name, "password": password})
            others = ask(f"{api}/experiments/create", admin, {"name": "of others"})
            own = ask(f"{api}/experiments/create", user, {"name": "context-encoder"})
            run = ask(f"{api}/runs/create", user, {"experiment_id": own["experiment_id"]})
            ask(f"{api}/registered-models/create", user, {"name": "context-encoder"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                ask(f"{api}/runs/create", user, {"experiment_id": others["experiment_id"]})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                ask(f"{api}/users/create", user, {"username": "y", "password": PASSWORD})
        run_id = run["run"]["info"]["run_id"]
        folder = back_up(tmp_path, database)
    with postgres(tmp_path / "pg2", PASSWORD, PASSWORD + " 2") as database:  # another machine
        restore(folder, database)
        with tracking_server(tmp_path / "mlflow2", database) as uri:
            found = ask(f"{uri}/api/2.0/mlflow/runs/get?run_id={run_id}", user)
            assert found["run"]["info"]["run_id"] == run_id


def back_up(folder: Path, database: dict[str, str]) -> Path:
    """What backup.yaml runs."""
    found = yaml.safe_load_all((PLATFORM / "backup.yaml").read_text())
    (cron,) = (d for d in found if d["kind"] == "CronJob")
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    backups = folder / "backups"
    backups.mkdir()
    for number in range(15):
        (backups / f"mlflow-20260101T0000{number:02}Z.dump").touch()
    words = [w.replace("cd /backups", f"cd {backups}") for w in container["args"]]
    environment = {**os.environ, **database, "PATH": f"{POSTGRES}:{os.environ['PATH']}"}
    subprocess.run([*container["command"], *words], env=environment, check=True, timeout=120)
    kept = sorted(path.name for path in backups.iterdir())
    assert len(kept) == 15 and "mlflow-20260101T000000Z.dump" not in kept
    return backups


def restore(backups: Path, database: dict[str, str]) -> None:
    """The commands of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    commands = re.findall(r"^    (pg_restore .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command, name in zip(commands, ("mlflow", "mlflow_auth"), strict=True):
        (dump,) = sorted(backups.glob(f"{name}-2*.dump"))[-1:]
        line = re.sub(r"\S+\.dump", str(dump), command)
        environment = {**os.environ, **database, "PATH": f"{POSTGRES}:{os.environ['PATH']}"}
        subprocess.run(["sh", "-c", line], env=environment, check=True, timeout=120)

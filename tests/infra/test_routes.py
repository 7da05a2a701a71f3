"""Every HTTP route of the running servers is asked without a login: 401 or 403, or it is listed."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from helpers import ROOT

from benchmarks.local_server import free_port, process, wait_until_serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECURITY = (ROOT / "SECURITY.md").read_text()
DENIED = {401, 403}
PORTS = ("ray", "dashboard", "agent", "client", "metrics", "mlflow")
AUTH = ROOT / "infra" / "kubernetes" / "platform" / "auth.ini"
# Both apps of the server: the routes of FastAPI, under which Flask's lie.
MLFLOW_ROUTES = """
import json
from fastapi.routing import iter_route_contexts
from mlflow.server import app as flask
from mlflow.server.auth import create_app
found = set()
for route in iter_route_contexts(create_app(flask).routes):
    found.update((method, route.path) for method in getattr(route, "methods", None) or ())
for rule in flask.url_map.iter_rules():
    found.update((method, rule.rule) for method in rule.methods)
print(json.dumps(sorted(found)))
"""


def listed(server: str) -> set[str]:
    """The row of SECURITY.md."""
    (row,) = re.findall(rf"^\| {server} \| (.*) \|$", SECURITY, re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", row))


def answers(base: str, method: str, path: str) -> int:
    """Without any login; the status."""
    filled = re.sub(r"<[^>]*>|\{[^}]*\}", "x", path)
    body = b"{}" if method in {"POST", "PUT", "PATCH"} else None
    asked = urllib.request.Request(base + filled, data=body, method=method)
    asked.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(asked, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class Stay(urllib.request.HTTPRedirectHandler):
    """A redirection is an answer."""

    def redirect_request(self, *_: object) -> None:
        return None


def open_routes(base: str, routes: set[tuple[str, str]]) -> set[str]:
    """The paths that answered otherwise than 401 or 403."""
    assert all(path.startswith("/") for _, path in routes), routes
    with ThreadPoolExecutor(4) as pool:
        codes = pool.map(lambda route: answers(base, *route), asked := sorted(routes))
        return {path for (_, path), code in zip(asked, codes, strict=True) if code not in DENIED}


def routes_in(log: Path) -> set[tuple[str, str]]:
    """As a server of Ray writes its own table down when it starts."""
    found = re.findall(r"<ResourceRoute \[(\S+)\] <\w+\s+(\S+?)>? ", log.read_text())
    return {("GET" if method == "*" else method, path) for method, path in found}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, int], Path]]:
    """`make cluster`: its ports, and the folder of Ray's logs."""
    folder = tmp_path_factory.mktemp("cluster")
    ports = {name: free_port() for name in PORTS}
    state = ["--state", str(folder / "state"), "--store", str(folder / "store"), "--cpus", "1"]
    where = [f"--{name}-port={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "infra.local.cluster"]
    started = subprocess.run(
        [*command, "start", *state, *where], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        record = json.loads((folder / "state" / "services.json").read_text())
        (logs,) = {
            Path(word.partition("=")[2])
            for child in psutil.Process(record["Ray"]["pid"]).children(recursive=True)
            if any(w.endswith("dashboard/dashboard.py") for w in child.cmdline())
            for word in child.cmdline()
            if word.startswith("--log-dir=")
        }
        yield ports, logs
    finally:
        subprocess.run([*command, "stop", *state], cwd=ROOT, check=True, timeout=300)


@pytest.mark.parametrize("server", ["dashboard", "agent"])
def test_ray_answers_nobody_without_the_token(
    server: str, cluster: tuple[dict[str, int], Path]
) -> None:
    ports, logs = cluster
    (log,) = [p for p in logs.glob("dashboard*.log") if p.stem in {server, f"dashboard_{server}"}]
    base, routes = f"http://127.0.0.1:{ports[server]}", routes_in(log)
    known = {"dashboard": "/api/jobs/", "agent": "/api/job_agent/jobs/"}[server]
    assert ("POST", known) in routes
    assert open_routes(base, routes) == listed(f"Ray {server}")
    for around in ("/static/../api/jobs/", "/static/%2e%2e/api/jobs/", "//api/jobs/"):
        assert answers(base, "GET", around) in {*DENIED, 404}


def test_mlflow_answers_nobody_without_a_login(tmp_path: Path) -> None:
    port = free_port()
    text = re.sub(r"postgresql\S+", f"sqlite:///{tmp_path}/logins.db", AUTH.read_text())
    (tmp_path / "auth.ini").write_text(text)
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "long enough for anybody",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "long enough for anybody",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/runs.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", "--workers=1",
               "--host=127.0.0.1", f"--port={port}"]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with process(command, tmp_path / "log", **environment) as server:
        wait_until_serving(f"{base}/health", server, tmp_path / "log")
        inside = psutil.Process(server.pid).children(recursive=True)[-1].environ()
        shown = subprocess.run(
            [sys.executable, "-c", MLFLOW_ROUTES], env=inside, capture_output=True, text=True,
            timeout=300, cwd=tmp_path,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        routes = {(method, path) for method, path in json.loads(shown.stdout)}
        paths = {path for _, path in routes}
        assert {"/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/users/create"} <= paths
        assert len(paths) > 200
        assert open_routes(base, routes) == listed("MLflow")

"""`make cluster`: starts, takes a job, refuses strangers, is found again, ends without a trace."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import mlflow
import psutil
import pytest
from helpers import ROOT, write_images

from benchmarks.local_server import free_port
from infra.local import cluster, processes
from pipelines.pretrain.gauges import GAUGES, PREFIX

TRAIN = (
    "--steps 2000 --batch-size 8 --bottleneck 16 --log-every 1 --validate-every 10"
    " --checkpoint-every 1000 --validation-images 2"
)
PORTS = ("ray", "dashboard", "agent", "client", "metrics", "mlflow")


def service(name: str, port: int, command: list[str] | None = None) -> processes.Service:
    """A small web server, or another command that should have been one."""
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    url = f"http://127.0.0.1:{port}/"
    return processes.Service(name, command or serve, {}, {"--port": port}, [url])


def test_a_server_is_started_recorded_found_and_ended(tmp_path: Path) -> None:
    one, log, record = service("one", free_port()), tmp_path / "log", tmp_path / "record.json"
    running = processes.launch(one, log)
    try:
        processes.wait_until_serving(one, running, log, "token", wait_s=60)
        processes.write_record(record, {"one": running})
        assert processes.read_record(record) == {"one": running}
        holder = rf"port {one.ports['--port']}, which two needs, is taken by process {running.pid} "
        with pytest.raises(processes.ClusterError, match=holder + r".*--port PORT"):
            processes.launch(service("two", one.ports["--port"]), log)
    finally:
        processes.end(running)
    assert running.process() is None
    processes.end(running)  # ended already: nothing happens


def test_another_database_is_another_server() -> None:
    """Its URI is no flag, since command lines are seen by everybody, and yet it is compared."""
    one = service("MLflow", 1)
    other = dataclasses.replace(one, settings={"MLFLOW_BACKEND_STORE_URI": "postgresql://b"})
    running = processes.Running("MLflow", 1, 0.0, list(one.command), one.digest)
    with pytest.raises(processes.ClusterError, match="other flags, store or database"):
        cluster.require_same(other, running, "", Path("log"))


def test_a_number_that_another_process_has_is_not_ours() -> None:
    me = psutil.Process()
    stale = processes.Running("stale", me.pid, me.create_time() - 60, [], "")
    assert stale.process() is None
    processes.end(stale)  # this process, which goes on


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    broken = service("broken", free_port(), [sys.executable, "-c", "raise SystemExit('no luck')"])
    running = processes.launch(broken, tmp_path / "log")
    with pytest.raises(processes.ClusterError, match=r"(?s)broken has ended.*no luck"):
        processes.wait_until_serving(broken, running, tmp_path / "log", "", wait_s=60)


def test_the_token_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token"
    token = cluster.make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600 and len(token) == 64
    path.chmod(0o644)
    assert cluster.make_token(path) == token
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_commands_write_is_not_uploaded(tmp_path: Path) -> None:
    """Ray's own reading of our ignore files, on a checkout in which everything was tried."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    for name in (".gitignore", ".rayignore"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    ignored = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    assert not any(ignore(tmp_path) for ignore in ignored)  # or nothing is uploaded
    for name in ("datasets", "store", "filled", "features", "photo.jpg", ".cluster", ".venv",
                 "outputs", "exports", ".git", "ce_model/__pycache__"):  # fmt: skip
        assert any(ignore(tmp_path / name) for ignore in ignored), name
    for name in ("ce_model", "ce_model/training", "pipelines/promotion/gates.yaml",
                 "jobs/prepare.py", "configs/quickstart.yaml", "own.yaml"):  # fmt: skip
        assert not any(ignore(tmp_path / name) for ignore in ignored), name
    assert 100_000 < cluster.upload_bytes() < 10_000_000


def test_the_line_to_paste_names_the_ray_beside_whatever_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/env/bin/python3.12")
    args = argparse.Namespace(store="s3://bucket/store", dashboard_port=1, mlflow_port=2)
    assert " /env/bin/ray job submit " in cluster.how_to_submit(args, tmp_path / "token")


def test_a_job_that_cannot_be_stopped_keeps_no_server_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the other jobs from their checkpoints."""
    jobs = [{"submission_id": name, "status": "RUNNING"} for name in ("one", "two")]
    listed, asked = iter([jobs, []]), []

    def ask(url: str, token: str, method: str = "GET") -> object:
        if method == "GET":
            return next(listed)
        asked.append(url.split("/")[-2])
        raise urllib.error.HTTPError(url, 500, "no agent", Message(), None)

    monkeypatch.setattr(cluster, "_ask", ask)
    cluster.stop_jobs(processes.Running("Ray", 1, 0.0, ["--dashboard-port=1"], ""), "token")
    assert asked == ["one", "two"]
    assert "job one cannot be asked to stop (HTTP Error 500: no agent)" in capsys.readouterr().out


def test_ray_may_drain_before_it_is_killed() -> None:
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    assert processes.END_S > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S


def make(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.local.cluster", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


def listening() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for c in psutil.net_connections("tcp"):
        if c.status == psutil.CONN_LISTEN and c.pid:
            found.setdefault(c.pid, set()).add(c.laddr.ip)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_start_submit_stop(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", {"apple": 4, "pear": 4})
    write_images(tmp_path / "photos" / "val", {"apple": 1, "pear": 1}, first=100)
    ports = {name: free_port() for name in PORTS}
    state = ["--state", str(tmp_path / "state")]
    where = [f"--{name}-port={port}" for name, port in ports.items()]
    where += ["--store", str(tmp_path / "store"), "--cpus", "2"]
    started = make("start", *state, *where)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        again = make("start", *state, *where).stdout.splitlines()[:2]
        assert all("runs already" in line for line in again), again
        record = json.loads((tmp_path / "state" / "services.json").read_text())
        first = [psutil.Process(each["pid"]) for each in record.values()]
        tree = {p.pid for one in first for p in (one, *one.children(recursive=True))}
        addresses = {ip for pid, ips in listening().items() if pid in tree for ip in ips}
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, addresses
        dashboard = f"http://127.0.0.1:{ports['dashboard']}/api/jobs/"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(dashboard, timeout=30)
        prepare = f"prepare.py --source {tmp_path}/photos --output {tmp_path}/dataset --sides 128"
        submit(started.stdout, "", prepare, tmp_path)
        assert (tmp_path / "dataset" / "manifest.json").exists()
        train = f"pretrain.py --source {tmp_path}/dataset --store {tmp_path}/store {TRAIN}"
        submit(started.stdout, "--no-wait", train, tmp_path)
        wait_for_gauges(ports["metrics"])
    finally:
        stopped = make("stop", *state)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopping job" in stopped.stdout and "are killed" not in stopped.stdout
    assert list(tmp_path.glob("store/pretrain/*/checkpoints/step-*/state.json"))
    server = mlflow.MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    runs = server.search_runs([e.experiment_id for e in server.search_experiments()])
    assert {run.info.status for run in runs if run.data.tags.get("stage") == "pretrain"} == {
        "KILLED"
    }
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in tree) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not [pid for pid in tree if psutil.pid_exists(pid)]
    assert not (tmp_path / "state" / "services.json").exists()
    assert "nothing runs" in make("stop", *state).stdout


def submit(printed: str, option: str, job: str, folder: Path) -> None:
    """The line that was printed, with another job, from a shell that knows no environment."""
    line = printed[printed.index("\ncd ") :].partition(" -- ")[0]
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = f"{line} {option} -- python jobs/{job}"
    done = subprocess.run(
        ["sh", "-c", command], env=bare, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for_gauges(port: int) -> None:
    """Every gauge of a training appears beside Ray's own; but for restarts, of which is none."""
    wanted = {f"ray_{PREFIX}{name}" for name in GAUGES} - {f"ray_{PREFIX}restarts"}
    deadline, found = time.monotonic() + 400, set[str]()
    while not wanted <= found:
        assert time.monotonic() < deadline, wanted - found
        time.sleep(2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found = set(re.findall(r"^(ray_\w+)", answer.read().decode(), re.MULTILINE))

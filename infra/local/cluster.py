"""A Ray head and an MLflow server on this machine, on loopback, for the jobs of this checkout.

$ python -m infra.local.cluster start --store store
$ python -m infra.local.cluster stop

Starting twice starts nothing twice; a server that has died is started again. Stopping ends exactly
what was started: running jobs first, with a checkpoint, then the servers. Nothing listens on other
addresses than 127.0.0.1, and Ray takes no request without the token.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from infra.local.processes import (
    ROOT,
    ClusterError,
    Running,
    Service,
    end,
    first_unanswered,
    launch,
    read_record,
    wait_until_serving,
    write_record,
)
from pipelines import storage

HOST = "127.0.0.1"
START_S = 300.0  # on a busy machine
STOP_WAIT_S = 60  # for a job to write its checkpoint; Ray's own default kills it after 3
UPLOAD_BYTES = 100 << 20  # the dashboard refuses more with 413


def ray_head(args: argparse.Namespace, token_file: Path) -> Service:
    """The head of a cluster of one node; jobs that it runs inherit its environment."""
    ports = {
        "--ray-port": args.ray_port,
        "--dashboard-port": args.dashboard_port,
        "--agent-port": args.agent_port,
        "--client-port": args.client_port,
        "--metrics-port": args.metrics_port,
    }
    command = [
        sys.executable, "-m", "infra.local.start_ray", "start", "--head", "--block",
        "--disable-usage-stats",
        f"--port={args.ray_port}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={args.dashboard_port}",
        # Not Ray's default: a job that starts a Ray of its own takes that one, and a head without
        # its agent answers every submission with 500.
        f"--dashboard-agent-listen-port={args.agent_port}",
        f"--ray-client-server-port={args.client_port}",
        f"--metrics-export-port={args.metrics_port}",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    if args.cpus is not None:
        command.append(f"--num-cpus={args.cpus}")
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Ray then takes 127.0.0.1 for this node, and GCS, raylet and metrics listen there alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_worker_niceness": "0",
        "MLFLOW_TRACKING_URI": mlflow_uri(args),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_ADDRESS"):
        raise ClusterError(
            "RAY_AUTH_TOKEN or RAY_ADDRESS is set, which is of another cluster: unset both, since "
            f"this one has its token in {token_file}"
        )
    agent = f"http://{HOST}:{args.agent_port}/api/local_raylet_healthz"
    return Service("Ray", command, own, ports, [f"{dashboard_uri(args)}/api/jobs/", agent])


def mlflow_server(args: argparse.Namespace) -> Service:
    """The tracking server; artifacts go through it."""
    home = args.state if "://" in args.store else Path(args.store)
    database = args.database or f"sqlite:///{home / 'mlflow.db'}"
    artifacts = args.artifacts or f"{args.store.rstrip('/')}/mlartifacts"
    if database.startswith("sqlite:///"):
        Path(database.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", f"--host={HOST}", f"--port={args.mlflow_port}",
        "--workers=1", f"--artifacts-destination={artifacts}",
        f"--allowed-hosts={HOST}:{args.mlflow_port},localhost:{args.mlflow_port}",
    ]  # fmt: skip
    own = {
        # A URI of a database may hold a password, which a command line shows to everybody.
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Service(
        "MLflow", command, own, {"--mlflow-port": args.mlflow_port},
        [f"{mlflow_uri(args)}/health"],
    )  # fmt: skip


def dashboard_uri(args: argparse.Namespace) -> str:
    """Where jobs are submitted."""
    return f"http://{HOST}:{args.dashboard_port}"


def mlflow_uri(args: argparse.Namespace) -> str:
    """Where curves are."""
    return f"http://{HOST}:{args.mlflow_port}"


def make_token(path: Path) -> str:
    """The token in a file of this user alone; made once."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    path.chmod(0o600)
    return path.read_text().strip()


def start_cluster(args: argparse.Namespace) -> None:
    """Start what does not run, and print how to submit a job."""
    token_file = args.state / "token"
    token = make_token(token_file)
    record = args.state / "services.json"
    running = {name: r for name, r in read_record(record).items() if r.process() is not None}
    for service in (mlflow_server(args), ray_head(args, token_file)):
        log = args.state / f"{service.name.lower()}.log"
        if before := running.get(service.name):
            require_same(service, before, token, log)
            print(f"{service.name}: runs already, process {before.pid}")
            continue
        running[service.name] = launch(service, log)
        write_record(record, running)  # at once, so that whoever interrupts can stop it
        try:
            wait_until_serving(service, running[service.name], log, token, wait_s=START_S)
        except ClusterError:
            end(running.pop(service.name), print)
            write_record(record, running)
            raise
        print(f"{service.name}: started, process {running[service.name].pid}")
    print(how_to_submit(args, token_file))


def require_same(service: Service, before: Running, token: str, log: Path) -> None:
    """Refuse to take a server of other settings, or one that does not serve, for ours.

    Raises:
        ClusterError: says what to do.
    """
    if before.digest != service.digest:
        raise ClusterError(
            f"{service.name}, process {before.pid}, runs with other flags, store or database "
            f"({' '.join(before.command[3:])}): `make cluster-stop` first"
        )
    if problem := first_unanswered(service, token):
        raise ClusterError(
            f"{service.name}, process {before.pid}, runs but {problem}: look into {log}, or "
            "`make cluster-stop` and start again"
        )


def how_to_submit(args: argparse.Namespace, token_file: Path) -> str:
    """What the user needs next: addresses and a line to paste."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = git.stdout.strip() or "unknown"
    environment = json.dumps({"env_vars": {"GIT_COMMIT": commit}})
    uploaded = upload_bytes()
    size = f"{uploaded / 1e6:.1f} MB"
    if uploaded > UPLOAD_BYTES:
        size += f", more than the {UPLOAD_BYTES >> 20} MiB that Ray takes: see .rayignore"
    return "\n".join(
        [
            f"dashboard {dashboard_uri(args)} (with the token in {token_file}), "
            f"MLflow {mlflow_uri(args)}, store {args.store}",
            f"A submission uploads {size}: what .rayignore leaves of {ROOT}.",
            "",
            f"cd {ROOT}",
            f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file} "
            f"{Path(sys.executable).parent / 'ray'} job submit "
            f"--address {dashboard_uri(args)} --working-dir . \\",
            f"  --runtime-env-json '{environment}' \\",
            f"  -- python jobs/pretrain.py --config configs/quickstart.yaml --store {args.store}",
        ]
    )


def upload_bytes() -> int:
    """What `ray job submit --working-dir` would upload of this checkout."""
    lines = (ROOT / ".rayignore").read_text().splitlines()
    tops = [line[2:] for line in lines if line.startswith("!/") and not line.endswith("**")]
    files = (f for top in tops for path in ROOT.glob(top) for f in (path, *path.rglob("*")))
    return sum(f.stat().st_size for f in files if f.is_file() and "__pycache__" not in f.parts)


def stop_cluster(args: argparse.Namespace) -> None:
    """Stop running jobs with their checkpoints, then the servers."""
    record = args.state / "services.json"
    recorded = read_record(record)
    if not recorded:
        print("nothing runs that `make cluster` has started")
        return
    if "Ray" in recorded and recorded["Ray"].process() is not None:
        stop_jobs(recorded["Ray"], (args.state / "token").read_text().strip())
    for name, each in reversed(recorded.items()):
        print(f"{name}: {'ending' if each.process() else 'had ended before,'} process {each.pid}")
        end(each, print)
        write_record(record, {n: r for n, r in read_record(record).items() if n != name})


def stop_jobs(head: Running, token: str) -> None:
    """Ask running jobs to stop, and wait as long as Ray gives them."""
    (port,) = (a.partition("=")[2] for a in head.command if a.startswith("--dashboard-port="))
    url = f"http://{HOST}:{port}/api/jobs/"
    deadline = time.monotonic() + STOP_WAIT_S + 15
    asked: set[str] = set()
    while time.monotonic() < deadline:
        try:
            found = _ask(url, token)
        except (OSError, ValueError) as error:
            print(f"jobs cannot be asked to stop ({error}); they end with Ray")
            return
        active = [j["submission_id"] for j in found if j["status"] in ("PENDING", "RUNNING")]
        active = [each for each in active if each]  # others are interactive drivers
        if not active:
            return
        for job in active:
            if job not in asked:
                print(f"stopping job {job}; the same command resumes it")
                asked.add(job)
                try:
                    _ask(f"{url}{job}/stop", token, method="POST")
                except (OSError, ValueError) as error:
                    print(f"job {job} cannot be asked to stop ({error}); it ends with Ray")
        time.sleep(1)
    print(f"jobs that did not stop in {STOP_WAIT_S} s are killed: {', '.join(active)}")


def _ask(url: str, token: str, method: str = "GET") -> Any:
    request = urllib.request.Request(
        url, method=method, headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def main() -> None:
    """Parse, do, and print errors as one message."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m infra.local.cluster")
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("--state", type=Path, default=ROOT / ".cluster",
                        help="folder for token, logs and the record of what runs")  # fmt: skip
    parser.add_argument("--store", default="store", help="the jobs' store: a folder or s3://...")
    parser.add_argument("--database", help="MLflow's: postgresql+psycopg2://...; without it SQLite "
                        "in the store")  # fmt: skip
    parser.add_argument("--artifacts", help="MLflow's files; without it mlartifacts in the store")
    parser.add_argument("--cpus", type=int, help="CPUs that Ray may use; without it all")
    for name, port in {"ray": 6379, "dashboard": 8265, "agent": 52366, "client": 10001,
                       "metrics": 8090, "mlflow": 5000}.items():  # fmt: skip
        parser.add_argument(f"--{name}-port", type=int, default=port)
    args = parser.parse_args()
    args.state = args.state.expanduser().absolute()
    args.store = storage.absolute(args.store)
    try:
        start_cluster(args) if args.action == "start" else stop_cluster(args)
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

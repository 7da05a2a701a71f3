"""The compose file fits the specification, and its services start with its commands."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import ROOT, postgres_folder, write_images
from network_helpers import Machine, needs_namespaces, network
from postgres_helpers import postgres

from benchmarks.local_server import process

FOLDER = ROOT / "infra" / "compose"
FILE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
# schema/compose-spec.json of the Compose specification (Apache License 2.0)
SCHEMA = ROOT / "tests" / "schemas" / "compose-spec.json.gz"
SECRETS = {
    name: f"{number}0123456789abcdef"
    for number, name in enumerate(
        ("S3_KEY", "S3_SECRET", "RAY_TOKEN", "POSTGRES_PASSWORD", "MLFLOW_PASSWORD",
         "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SESSION_KEY", "TRAINER_PASSWORD")
    )
}  # fmt: skip
PREPARE = ["--store", "s3://context-encoder/store", "--sides", "128", "--strategies", "central"]
LOOK = """
import mlflow, s3fs
client = mlflow.MlflowClient()
experiments = [each.experiment_id for each in client.search_experiments()]
print([run.data.tags["stage"] for run in client.search_runs(experiments)])
bucket = s3fs.S3FileSystem()
print(len(bucket.glob("context-encoder/store/prepare/*/manifest.json")))
print(len(bucket.glob("context-encoder/mlflow/*/*/artifacts/card.json")))
"""
SECRET = re.compile(r"KEY|SECRET|TOKEN$|PASSWORD$")
REQUIRED = re.compile(r"\$\{([A-Z0-9_]+):\?see docs/deploy\.md\}")


def problems(file: dict[str, Any]) -> list[str]:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    found = jsonschema.Draft201909Validator(schema).iter_errors(file)
    return [f"{error.json_path}: {error.message}" for error in found]


def test_the_file_fits_the_specification() -> None:
    assert not problems(FILE)
    wrong = {**FILE, "services": {"s3": {**SERVICES["s3"], "comand": []}}}
    assert "comand" in str(problems(wrong))


def test_every_name_resolves() -> None:
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(FILE["networks"]), name
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            if source.startswith("."):
                assert (FOLDER / source).exists(), volume
            elif target:
                assert source in FILE["volumes"], volume
    for condition, needs in (("service_healthy", "test"), ("service_completed_successfully", None)):
        for service in SERVICES.values():
            for other, how in service.get("depends_on", {}).items():
                if how["condition"] == condition:
                    assert needs is None or needs in SERVICES[other]["healthcheck"]
                    assert (SERVICES[other]["restart"] == "no") == (needs is None)


def test_ports_are_on_loopback_and_no_secret_is_written_or_has_a_default() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "no-new-privileges:true" in service["security_opt"]
        for key, value in service["environment"].items():
            if SECRET.search(key):
                assert REQUIRED.fullmatch(value), f"{name}: {key}"
        assert "PASSWORD" not in " ".join(service.get("command", []))
    named = set(REQUIRED.findall((FOLDER / "compose.yaml").read_text()))
    assert named == set(SECRETS)
    documented = (ROOT / "docs" / "deploy.md").read_text()
    assert all(name in documented for name in named)


def test_images_are_those_of_the_manifests() -> None:
    manifests = "".join(p.read_text() for p in (ROOT / "infra" / "kubernetes").rglob("*.yaml"))
    for name, service in SERVICES.items():
        assert name == "s3" or f"image: {service['image']}\n" in manifests, name
        assert not service["image"].endswith(":latest")


class Stack:
    """The services as processes, each on a machine of its own that has the service's name."""

    def __init__(self, machines: dict[str, Machine], folder: Path) -> None:
        self.machines, self.folder = machines, folder

    def environment(self, name: str) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        path = os.pathsep.join([bin_folder, os.environ["PATH"]])
        own = {k: REQUIRED.sub(lambda m: SECRETS[m[1]], v)
               for k, v in SERVICES[name]["environment"].items()}  # fmt: skip
        paths = {"/etc/mlflow/auth.ini": str(ROOT / "infra/kubernetes/platform/auth.ini")}
        return {**os.environ, "PATH": path, **{k: paths.get(v, v) for k, v in own.items()},
                "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}  # fmt: skip

    def words(self, name: str) -> list[str]:
        """The command, with a file where its volume lies here; less memory and fewer processes."""
        found = [str(FOLDER / "setup.py") if w == "/setup.py" else w
                 for w in SERVICES[name]["command"]]  # fmt: skip
        found = ["--workers=1" if w.startswith("--workers") else w for w in found]
        if found[:2] == ["ray", "start"]:  # with the patience that a busy machine needs
            found = [sys.executable, "-m", "infra.local.start_ray", *found[1:]]
            found += ["--object-store-memory=200000000", "--num-cpus=2"]
        return self.machines[name].command(found)

    def run(self, name: str, words: list[str] | None = None) -> str:
        done = subprocess.run(
            words or self.words(name), env=self.environment(name), capture_output=True, text=True,
            timeout=600, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def start(self, name: str, running: ExitStack) -> None:
        """Start it, and wait as its health check says."""
        log = self.folder / f"{name}.log"
        server = running.enter_context(process(self.words(name), log, **self.environment(name)))
        self.wait(name, server, log)

    def wait(self, name: str, server: subprocess.Popen[bytes], log: Path) -> None:
        check = SERVICES[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        command, deadline = self.machines[name].command(check[1:]), time.monotonic() + 300
        while subprocess.run(command, capture_output=True, timeout=60).returncode:
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    names = ["postgres", "s3", "mlflow", "migrate", "setup", "head", "worker"]
    assert set(names) == set(SERVICES)
    with network(tmp_path, *names) as machines:
        yield Stack(machines, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@needs_namespaces
@pytest.mark.skipif(postgres_folder() is None, reason="PostgreSQL is not installed")
def test_the_services_start_and_run_a_job(stack: Stack, tmp_path: Path) -> None:
    """PostgreSQL by its own programs, not by its image's start script; moto is the S3 server."""
    with ExitStack() as running:
        running.enter_context(
            postgres(tmp_path / "pg", SECRETS["POSTGRES_PASSWORD"], SECRETS["MLFLOW_PASSWORD"],
                     machine=stack.machines["postgres"])
        )  # fmt: skip
        moto = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "8333"]
        moto = stack.machines["s3"].command(moto)
        running.enter_context(process(moto, tmp_path / "s3.log"))
        stack.run("migrate")
        stack.start("mlflow", running)
        stack.run("setup")
        assert stack.run("setup") == ""  # may run again
        stack.start("head", running)
        stack.start("worker", running)
        submit = ["ray", "job", "submit", "--address", "http://head:8265", "--"]
        write_images(tmp_path / "photos" / "train", {"apple": 8, "pear": 8})
        write_images(tmp_path / "photos" / "val", {"apple": 2, "pear": 2}, first=100)
        source = ["--source", str(tmp_path / "photos")]
        job = ["python", str(ROOT / "jobs" / "prepare.py"), *source, *PREPARE]
        shown = stack.run("worker", stack.machines["worker"].command([*submit, *job]))
        assert "succeeded" in shown and "20 written" in shown
        look = stack.machines["head"].command(["python", "-c", LOOK])
        assert stack.run("head", look).split("\n")[:3] == ["['prepare']", "1", "1"]

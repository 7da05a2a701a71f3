"""A password in the URI of the tracking server, of S3 or of a source: no job tells it. Slow."""

import base64
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, free_port, mlflow_server_command, wait_until_serving, write_pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CANARY = "s3cr3t-PW"
TRAINING = {"steps": "8", "batch-size": "8", "bottleneck": "16", "validation-images": "4"}


@pytest.fixture
def tracking_port(tmp_path: Path) -> Iterator[int]:
    port, log = free_port(), tmp_path / "server.log"
    (tmp_path / "server").mkdir()
    command = mlflow_server_command(
        tmp_path / "server", f"sqlite:///{tmp_path}/server/server.db", port
    )
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_until_serving(f"http://127.0.0.1:{port}/health", server, log)
        yield port
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def images_port(tmp_path: Path) -> Iterator[int]:
    """Serves pictures.tar."""
    write_pictures(tmp_path / "raw" / "train", {"apple": 12, "pear": 12})
    write_pictures(tmp_path / "raw" / "val", {"apple": 4, "pear": 4}, first=100)
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "pictures.tar", "w") as tar:
        tar.add(tmp_path / "raw", arcname=".")
    handler = type("_Handler", (_Tar,), {"tar": (tmp_path / "web" / "pictures.tar").read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Tar(http.server.BaseHTTPRequestHandler):
    """Answers with parts of a tar, to whoever gives the password."""

    tar = b""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        token = base64.b64encode(f"alice:{CANARY}".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {token}"
        found = known and self.path == "/pictures.tar"
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(part[1]), int(part[2]) + 1) if part else (0, len(self.tar))
        body = self.tar[first:last] if found else b""
        self.send_response((206 if part else 200) if found else 404 if known else 401)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(self.tar)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def serve_once(model: str, tracking: str, store: str, settings: dict[str, str], log: Path) -> str:
    """What jobs/serve.py says while it starts, answers and ends, and what it answers."""
    port = free_port()
    command = [sys.executable, "jobs/serve.py", "--model", model, "--port", str(port),
               "--tracking-uri", tracking, "--store", store]  # fmt: skip
    with log.open("wb") as file:
        server = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=file, stderr=file)
    try:
        wait_until_serving(f"http://127.0.0.1:{port}/healthz", server, log)
        answers = [
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).read().decode()
            for path in ("/", "/models", "/metrics", "/openapi.json")
        ]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(120)
    return "\n".join(["serve:", log.read_text(), *answers])


def test_no_job_tells_a_password(tmp_path: Path, tracking_port: int, images_port: int) -> None:
    user = f"alice:{CANARY}@127.0.0.1"
    store = tmp_path / "home"
    told: list[str] = []
    ray = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it, beside its logs

    tracking = f"http://{user}:{tracking_port}"
    settings = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(ray),
                "MLFLOW_TRACKING_URI": tracking}  # fmt: skip

    def give(job: str, *flags: str, fails: bool = False, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, f"jobs/{job}.py", *flags],
            cwd=ROOT, env={**settings, **more},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        told.append(f"{job}: {done.stdout}{done.stderr}")
        assert (done.returncode != 0) == fails, told[-1]
        return done.stdout + done.stderr

    inside = ("--store", str(store))
    training = [part for name, value in TRAINING.items() for part in (f"--{name}", value)]
    below = [part for name, value in TRAINING.items() for part in (f"--pretrain.{name}", value)]
    measured = ("--inpainting.images", "8", "--inpainting.database", "8",
                "--inpainting.strategies", "central", "--tasks", "inpainting")  # fmt: skip
    gates = tmp_path / "gates.yaml"
    gates.write_text("required: [inpainting]\n")

    web = f"http://{user}:{images_port}/pictures.tar"
    give("prepare", "--source", web, *inside, "--output", str(tmp_path / "d"))
    give("prepare", "--source", f"http://{user}:{images_port}/absent.tar", *inside, fails=True)
    data = str(tmp_path / "d")
    for source, more in (
        (f"s3://alice:{CANARY}@absent/photos", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        ("s3://absent/photos", {"AWS_ENDPOINT_URL": f"http://{user}:9"}),
        (f"http://127.0.0.1:9/a.tar?X-Amz-Signature={CANARY}", {}),
    ):
        keys = {"AWS_ACCESS_KEY_ID": "alice", "AWS_SECRET_ACCESS_KEY": CANARY}
        give("prepare", "--source", source, *inside, fails=True, **keys, **more)
    give("inspect_dataset", "--dataset", data)
    give("pretrain", "--source", data, *inside, *training, "--summary", str(tmp_path / "s.json"))
    (stage,) = (path.parent for path in store.glob("pretrain/*/commit.json"))
    give("evaluate", "--model", str(stage), "--data", data, *inside, *measured)
    # A training this short has collapsed: its model stays a candidate.
    judged = ("--gates", str(gates), *inside)
    give("workflow", "--source", data, *judged, *below, *measured, fails=True)
    give("promote", "--explain", "models:/context-encoder/1", *inside)
    give("promote", "--run", "f" * 32, *judged, fails=True)
    arm = ("--strategies", "central", "--adversarial", "0.001", "--seeds", "1")  # trained already
    give("ablate", "--source", data, *inside, *arm, *below, *measured)
    give("export", "--model", str(stage), "--output", str(tmp_path / "e"), *inside)
    give("inpaint", "--model", "models:/context-encoder/1", "--images",
         str(tmp_path / "raw" / "val"), "--strategy", "central", "--output", str(tmp_path / "f"),
         *inside)  # fmt: skip
    give("embed", "--model", str(stage), "--source", data, "--output", str(tmp_path / "v"),
         "--tracking-uri", tracking, *inside)  # fmt: skip
    told.append(serve_once(str(stage), tracking, str(store), settings, tmp_path / "serve.log"))
    wrong = f"http://{user}:{free_port()}"
    give("promote", "--run", "f" * 32, *judged, "--tracking-uri", wrong, fails=True)

    assert [line for line in told if CANARY in line] == []
    files = [path for home in (tmp_path, ray) for path in home.rglob("*") if path.is_file()]
    assert any("server.db" in path.name for path in files)
    leaks = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert leaks == []
    shutil.rmtree(ray)

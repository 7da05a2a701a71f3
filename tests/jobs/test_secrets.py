"""A password in the URI of the tracking server, of S3 or of a source: no job tells it. Slow."""

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, write_images

from benchmarks.local_server import free_port, mlflow_server_command, wait_until_serving

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
    write_images(tmp_path / "raw" / "train", {"apple": 12, "pear": 12})
    write_images(tmp_path / "raw" / "val", {"apple": 4, "pear": 4}, first=100)
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


JOBS = """
import glob, json, os, runpy, signal, sys, threading, time, urllib.request
from pipelines.runtime import cluster

def look_and_end(port):
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        time.sleep(1)
        try:
            for path in ("", "models", "metrics", "openapi.json"):
                url = f"http://127.0.0.1:{port}/{path}"
                print(urllib.request.urlopen(url, timeout=60).read().decode())
            break
        except OSError:
            continue
    os.kill(os.getpid(), signal.SIGINT)

store, commands = json.load(sys.stdin)
with cluster.connect_once():
    for job, fails, flags in commands:
        stage = next(map(os.path.dirname, glob.glob(f"{store}/pretrain/*/commit.json")), "none")
        sys.argv = [f"jobs/{job}.py", *(flag.replace("STAGE", stage) for flag in flags)]
        if job == "serve":
            threading.Thread(target=look_and_end, args=(flags[-1],), daemon=True).start()
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        # A server that answers may still be starting others when the signal comes.
        is_expected = bool(code) == fails or (job, code) == ("serve", 130)
        began = "as expected" if is_expected else "UNEXPECTEDLY"
        print(f"{job} ended {began} with {code!r}", flush=True)
"""


def test_no_job_tells_a_password(tmp_path: Path, tracking_port: int, images_port: int) -> None:
    """All jobs in one process on one cluster, which spares a dozen starts of both."""
    user = f"alice:{CANARY}@127.0.0.1"
    tracking = f"http://{user}:{tracking_port}"
    store, data = str(tmp_path / "home"), str(tmp_path / "d")
    web = f"http://{user}:{images_port}"
    gates = tmp_path / "gates.yaml"
    gates.write_text("required: [inpainting]\n")
    inside, judged = ("--store", store), ("--gates", str(gates), "--store", store)
    training = [part for name, value in TRAINING.items() for part in (f"--{name}", value)]
    below = [part for name, value in TRAINING.items() for part in (f"--pretrain.{name}", value)]
    measured = ("--inpainting.images", "8", "--inpainting.database", "8",
                "--inpainting.strategies", "central", "--tasks", "inpainting")  # fmt: skip
    arm = ("--strategies", "central", "--adversarial", "0.001", "--seeds", "1")  # trained already
    registered = "models:/context-encoder/1"
    commands = [
        ("prepare", False, "--source", f"{web}/pictures.tar", *inside, "--output", data),
        ("prepare", True, "--source", f"{web}/absent.tar", *inside),
        ("prepare", True, "--source", f"s3://alice:{CANARY}@absent/photos", *inside),
        ("prepare", True, "--source", f"http://127.0.0.1:9/a.tar?X-Amz-Signature={CANARY}",
         *inside),
        ("inspect_dataset", False, "--dataset", data),
        ("pretrain", False, "--source", data, *inside, *training, "--summary",
         str(tmp_path / "s.json")),
        ("evaluate", False, "--model", "STAGE", "--data", data, *inside, *measured),
        # A training this short has collapsed: its model stays a candidate.
        ("workflow", True, "--source", data, *judged, *below, *measured),
        ("promote", False, "--explain", registered, *inside),
        ("promote", True, "--run", "f" * 32, *judged),
        ("ablate", False, "--source", data, *inside, *arm, *below, *measured),
        ("export", False, "--model", "STAGE", "--output", str(tmp_path / "e"), *inside),
        ("inpaint", False, "--model", registered, "--images", str(tmp_path / "raw" / "val"),
         "--strategy", "central", "--output", str(tmp_path / "f"), *inside),
        ("embed", False, "--model", "STAGE", "--source", data, "--output", str(tmp_path / "v"),
         "--tracking-uri", tracking, *inside),
        ("promote", True, "--run", "f" * 32, *judged, "--tracking-uri",
         f"http://{user}:{free_port()}"),
        ("serve", False, "--model", "STAGE", "--tracking-uri", tracking, *inside, "--port",
         str(free_port())),
    ]  # fmt: skip
    ray = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it, beside its logs
    done = subprocess.run(
        [sys.executable, "-c", JOBS],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(ray),
            "MLFLOW_TRACKING_URI": tracking,
            "AWS_ACCESS_KEY_ID": "alice",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_ENDPOINT_URL": f"http://{user}:9",  # nobody listens
        },
        input=json.dumps([store, [(job, fails, flags) for job, fails, *flags in commands]]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert [line for line in told.splitlines() if CANARY in line] == []
    assert told.count(" ended as expected with ") == len(commands), told
    files = [path for home in (tmp_path, ray) for path in home.rglob("*") if path.is_file()]
    assert any("server.db" in path.name for path in files)
    leaks = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert leaks == []
    shutil.rmtree(ray)

"""Servers on loopback, started and ended by tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def mlflow_server_command(folder: Path, backend: str, port: int) -> list[str]:
    """An MLflow server with its artifacts beside it in the folder."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", backend,
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip


@contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the folder of its log, ended with all it has started."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, cwd=log.parent, env={**os.environ, **environment}, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def wait_until_serving(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers.

    Raises:
        AssertionError: it ended, or never answered; with its log.
    """
    deadline = time.monotonic() + 400  # a busy machine takes minutes
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"nobody answers at {url}: {log.read_text()}"
            time.sleep(0.5)

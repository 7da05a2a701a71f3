"""A service without Ray on a free port of loopback, for the tests of the HTTP interface."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from benchmarks.local_server import free_port
from pipelines.serve.config import ServeConfig
from pipelines.serve.counts import Counts
from pipelines.serve.routes import make_app
from pipelines.serve.served import ServedModels
from pipelines.serve.service import Service


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(
    *models: str, store: Path, token: str | None = None, **settings: Any
) -> Iterator[tuple[str, Service]]:
    """URL and service."""
    config = ServeConfig(model=models, port=free_port(), store=str(store), **settings)
    service = Service(ServedModels(models, config.store, config.tracking_uri), config)
    app = make_app(service, Counts("test"), token=token)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=config.port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{config.port}", service
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request; errors of the service are answers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=120) as got:
            return Answer(got.status, dict(got.headers.items()), got.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers.items()), error.read())


def multipart(**parts: bytes | str) -> tuple[bytes, str]:
    """Body and content type; bytes are files."""
    edge, body = "edge-of-a-part", b""
    for name, value in parts.items():
        file = f'; filename="{name}"' if isinstance(value, bytes) else ""
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def post(url: str, **parts: bytes | str) -> Answer:
    body, kind = multipart(**parts)
    return ask(url, body, content_type=kind)

"""An S3 server (moto) on loopback that fails in every way it can, and counts what it is asked for.

Tests and benchmarks use it: `with serving() as server: server.faults = [Fault("503", "GET", 3)]`.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

CODES = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path holds `part`.

    Where `part` has a `?`, path and query are looked at.
    """

    kind: str
    method: str
    times: int
    part: str = ""
    hits: int = 0


@dataclass
class FaultyServer:
    """A WSGI layer around moto; `requests` has every method and path."""

    inner: Callable[..., Iterable[bytes]]
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    writing: threading.Lock = field(default_factory=threading.Lock)
    silent_s: float = 8.0
    sent: int = 0
    """Bytes of all answers to GET."""

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or fail it."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(f"{method} {path}")
        for fault in self.faults:
            place = f"{path}?{environ['QUERY_STRING']}" if "?" in fault.part else path
            if fault.method == method and fault.part in place and fault.hits < fault.times:
                fault.hits += 1
                return self.fail(fault, environ, start)
        return self.answer(environ, start)

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """What moto says; one write at a time, or its If-None-Match lets two writers win."""
        writes = environ["REQUEST_METHOD"] == "PUT"
        with self.writing if writes else nullcontext():
            body = b"".join(self.inner(environ, start))
        if environ["REQUEST_METHOD"] == "GET":
            self.sent += len(body)
        return [body]

    def fail(
        self, fault: Fault, environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Do what a fault says."""
        if fault.kind in CODES:
            code = CODES[fault.kind]
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            start(f"{fault.kind} {code}", [("Content-Length", str(len(body)))])
            return [body]
        if fault.kind == "reset":
            start("500 reset", [])
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if fault.kind == "lost":
            self.answer(environ, start)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if fault.kind == "slow":
            time.sleep(1.0)
            return self.answer(environ, start)
        if fault.kind == "silent":
            time.sleep(self.silent_s)
            return self.answer(environ, start)
        if fault.kind == "error in 200":  # as S3 ends what takes long
            body = b"<Error><Code>InternalError</Code><Message>Try again</Message></Error>"
            start("200 OK", [("Content-Type", "application/xml")])
            return [body]
        (body,) = self.answer(environ, start)
        if fault.kind == "cut":
            return [body[: len(body) // 2]]
        flipped = bytearray(body)
        flipped[len(body) // 2] ^= 0x55
        return [bytes(flipped)]


@contextmanager
def serving() -> Iterator[FaultyServer]:
    """The server, with the environment that lets every client of this process find it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            """Say nothing."""

        def log_error(self, *args: Any) -> None:
            """Connections are broken on purpose here."""

    layer = FaultyServer(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, layer, threaded=True, request_handler=Quiet)
    assert isinstance(http, ThreadedWSGIServer)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    layer.url = f"http://127.0.0.1:{http.server_port}"
    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": layer.url,
    }
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    try:
        yield layer
    finally:
        http.shutdown()
        thread.join()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""Start the service and keep it up until it is interrupted."""

import secrets
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import NamedTuple

from ray import serve

from pipelines.errors import UserError, first_line
from pipelines.runtime import cluster
from pipelines.runtime.progress import plain_console
from pipelines.serve import application
from pipelines.serve.config import TOKEN, ServeConfig, token_from_environment
from pipelines.serve.served import ServedModels, newest_model

LOOK_S = 5.0
DOWN_S = 60.0  # a service that does not answer for so long is not coming back


class Address(NamedTuple):
    """Where the service is."""

    url: str
    token: str | None


def serve_models(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        UserError: no such model, a port in use, or a service that went away.
    """
    console = plain_console(soft_wrap=True)
    config = replace(config, model=config.model or (newest_model(config.store),))
    config = replace(config, port=_free_port(config))
    token = _token(config)
    # A model that cannot be served is refused before Ray starts.
    console.print(f"loading {', '.join(config.model)}")
    names = ServedModels(config.model, config.store, config.tracking_uri).names
    with cluster.connect() as resources:
        address = start(config, token, gpu=resources.gpus >= config.replicas)
        console.print(f"models: {', '.join(names)}")
        console.print(f"open {address.url}   (HTTP interface: {address.url}docs; Ctrl-C ends it)")
        if token:
            console.print(f"the page asks for the token {token}")
        try:
            _watch(address.url)
        except KeyboardInterrupt:
            console.print("ending; requests at work are still answered")
        finally:
            serve.shutdown()


def start(config: ServeConfig, token: str | None, *, gpu: bool = False) -> Address:
    """Start the service in the cluster we are in, and wait until it answers.

    Raises:
        UserError: it does not start.
    """
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": config.host,
                "port": config.port,
                "request_timeout_s": config.timeout_s + LOOK_S,
            },
        )
        serve.run(
            application.bind(config, token, gpu=gpu),
            name=application.NAME,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
    except (RuntimeError, TimeoutError) as error:
        raise UserError(f"the service did not start: {first_line(error)}") from error
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    shown = f"[{host}]" if ":" in host else host
    return Address(f"http://{shown}:{config.port}/", token)


def _watch(url: str) -> None:
    """Return never; a service that stays away is an error."""
    seen = time.monotonic()
    while True:
        time.sleep(LOOK_S)
        try:
            urllib.request.urlopen(f"{url}healthz", timeout=LOOK_S).close()
            seen = time.monotonic()
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() - seen > DOWN_S:
                raise UserError(
                    f"the service at {url} has not answered for {DOWN_S:.0f} s ({error}); look "
                    "into /tmp/ray/session_latest/logs/serve"
                ) from None


def _token(config: ServeConfig) -> str | None:
    try:
        token = token_from_environment()
    except ValueError as error:
        raise UserError(str(error)) from None
    if token is None and not config.is_loopback:
        plain_console(soft_wrap=True).print(
            f"host is {config.host}, which others can reach, and {TOKEN} is not set: one was made"
        )
        return secrets.token_hex(16)
    return token


def _free_port(config: ServeConfig) -> int:
    """The port, or a free one for 0.

    Raises:
        UserError: it is in use, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"host is {config.host} and port {config.port}, where the service cannot listen "
                f"({error.strerror}); choose another with --port, or 0 for any free one"
            ) from None
        return int(tried.getsockname()[1])

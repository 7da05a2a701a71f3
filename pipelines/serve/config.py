"""Settings of the service."""

import os
from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "CONTEXT_ENCODER_TOKEN"
MIN_TOKEN = 16  # characters


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve models: a page with a brush, and an HTTP interface."""

    model: tuple[str, ...] = ()
    """Models to serve, the first by default: folder, stage, run id or models:/NAME@ALIAS, each
    alone or as LABEL=MODEL; none: the one that was trained last in the store."""
    host: str = "127.0.0.1"
    """Address to listen on; on any but this machine's own, each request needs the token in the
    environment variable CONTEXT_ENCODER_TOKEN, which is made up and printed where it is not set."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    names: tuple[str, ...] = ()
    """Further host names under which browsers reach the service, such as behind a proxy."""
    replicas: int = 1
    """Processes that each hold all models."""
    batch_size: int = 8
    """Photographs that are filled at once at most."""
    max_bytes: int = 32 << 20
    """Largest request, bytes."""
    max_pixels: int = 25_000_000
    """Largest image, pixels."""
    max_waiting: int = 32
    """Requests at once in a replica; more are answered 503 at once."""
    timeout_s: float = 60.0
    """Time of a request, s; then it is answered 504."""
    reload_s: float = 10.0
    """How often a registered model's alias is looked up, s."""
    store: str = "store"
    """Where models are looked for and kept; with SQLite also the tracking."""
    tracking_uri: str | None = None
    """MLflow server of registered models; None: MLFLOW_TRACKING_URI, else SQLite in the store."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, least in (
            ("port", 0), ("replicas", 1), ("batch_size", 1), ("max_bytes", 1024),
            ("max_pixels", 1024), ("max_waiting", 1), ("timeout_s", 1), ("reload_s", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.port > 65535:
            raise ValueError(f"port is {self.port}; it must be 0 to 65535")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOOPBACK


def token_from_environment() -> str | None:
    """The token that requests have to carry, where one is set.

    Raises:
        ValueError: it is too short to be one.
    """
    token = os.environ.get(TOKEN) or None
    if token is not None and len(token) < MIN_TOKEN:
        raise ValueError(
            f"{TOKEN} has {len(token)} characters; it must have {MIN_TOKEN} or more, such as from "
            "`openssl rand -hex 16`"
        )
    return token

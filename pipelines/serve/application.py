"""The Ray Serve application.

`run_service` starts it for jobs/serve.py; a Serve config file, such as that of a RayService, names
`pipelines.serve.application:build` as its import path and the settings of ServeConfig as `args`.
"""

from dataclasses import fields, replace
from typing import Any

from fastapi import FastAPI
from ray import serve

from pipelines.serve.config import ServeConfig, token_from_environment
from pipelines.serve.counts import Counts
from pipelines.serve.routes import make_app
from pipelines.serve.served import ServedModels, newest_model
from pipelines.serve.service import Service

NAME = "context-encoder"


@serve.ingress()
class Replica:
    """Holds the models and answers requests; a class because Ray Serve keeps one a process."""

    def __init__(self, config: ServeConfig, token: str | None) -> None:
        """Load the models, once per process."""
        models = ServedModels(config.model, config.store, config.tracking_uri)
        self._service = Service(models, config)
        self._token = token or token_from_environment()
        if self._token is None and not config.is_loopback:
            raise ValueError("the service listens beyond this machine and has no token")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP interface in front of the models."""
        replica = serve.get_replica_context().replica_id.unique_id
        return make_app(self._service, Counts(replica), token=self._token)


def build(args: dict[str, Any]) -> serve.Application:
    """The application for a Serve config file; `args` are settings of ServeConfig.

    Beyond loopback, which is where a cluster listens, the replicas read the token from their
    environment variable CONTEXT_ENCODER_TOKEN.

    Raises:
        ValueError: unknown settings, or such as cannot be.
    """
    known = {field.name for field in fields(ServeConfig)}
    if unknown := sorted(args.keys() - known):
        raise ValueError(f"args holds {unknown}; it may hold {', '.join(sorted(known))}")
    lists: dict[str, Any] = {n: tuple(args[n]) for n in ("model", "names") if n in args}
    settings: dict[str, Any] = {"host": "0.0.0.0", **args, **lists}
    return bind(ServeConfig(**settings), None)


def bind(config: ServeConfig, token: str | None, *, gpu: bool = False) -> serve.Application:
    """The application for a configuration; the newest model of the store, where none is named."""
    if not config.model:
        config = replace(config, model=(newest_model(config.store),))
    deployment = serve.deployment(
        Replica,
        name="replica",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": 0 if gpu else 1, "num_gpus": 1 if gpu else 0},
        # The replica itself answers what is beyond its limit, in words.
        max_ongoing_requests=2 * config.max_waiting,
        max_queued_requests=4 * config.max_waiting,
        graceful_shutdown_timeout_s=config.timeout_s,
    )
    return deployment.bind(config, token)

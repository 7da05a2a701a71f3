"""The HTTP interface: page, POST /fill and /embed, models, health, metrics, OpenAPI."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from ce_model.masks import STRATEGIES, Strategy
from pipelines.data import hole_masks, images, sample_images
from pipelines.data.hole_masks import POLARITIES, BadMask
from pipelines.serve.bodies import Refused, read_body
from pipelines.serve.config import LOOPBACK
from pipelines.serve.counts import Counts
from pipelines.serve.guard import Guard
from pipelines.serve.methods import METHODS, TITLES
from pipelines.serve.service import Service

PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/editor.js": ("editor.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}
MAX_HOLE_SIDE = 16384
SAMPLE_QUALITY = 92


def make_app(service: Service, counts: Counts, *, token: str | None = None) -> FastAPI:
    """The application; while it runs, aliases are looked up."""
    config = service.config
    names = (*LOOPBACK, *config.names) if config.is_loopback or config.names else ()
    app = FastAPI(
        title="Context encoder: fill and embed",
        version="1",
        description=DESCRIPTION,
        docs_url=None,  # it would load scripts of another site
        redoc_url=None,
        lifespan=lambda _: _renewing(service, counts),
    )
    app.add_middleware(Guard, names=names, token=token)
    waiting = [0]

    async def answer(
        path: str, request: Request, work: Callable[[], Awaitable[Response]]
    ) -> Response:
        began = time.monotonic()
        response: Response
        if waiting[0] >= config.max_waiting:
            response = _error(503, f"{waiting[0]} requests wait already; try again in a moment")
            response.headers["retry-after"] = "1"
        else:
            waiting[0] += 1
            try:
                with counts.request():
                    response = await asyncio.wait_for(work(), config.timeout_s)
            except Refused as error:
                response = _error(error.status, str(error))
            except TimeoutError:
                response = _error(504, f"not done within {config.timeout_s:g} s, the limit here")
            finally:
                waiting[0] -= 1
        counts.answered(path, response.status_code, began)
        return response

    @app.post("/fill", openapi_extra=_body("image", "mask"), responses=PNG_OR_JSON)
    async def fill(request: Request) -> Response:
        """Fill the hole of an image; all pixels outside of the mask are returned unchanged."""

        async def work() -> Response:
            body = await read_body(request, config.max_bytes)
            for name in ("image", "mask"):
                if not body.files.get(name):
                    raise Refused(400, f"{name} is missing; send image and mask as files")
            polarity = body.fields.get("polarity", "auto")
            if polarity not in POLARITIES:
                raise Refused(
                    400, f"polarity is '{polarity}'; it must be one of {', '.join(POLARITIES)}"
                )
            done = await service.fill(
                body.files["image"], body.files["mask"], body.fields.get("model", ""),
                polarity,
            )  # fmt: skip
            facts = {"model": done.name, "version": done.version, "pixels": done.pixels}
            if body.is_json:
                png = base64.b64encode(done.png).decode()
                return JSONResponse({"image": png, "note": done.note, **facts})
            headers = {f"x-{name}": str(value) for name, value in facts.items() if value}
            if done.note:
                headers["x-note"] = done.note
            return Response(done.png, media_type="image/png", headers=headers)

        return await answer("/fill", request, work)

    @app.post("/embed", openapi_extra=_body("image"))
    async def embed(request: Request) -> Response:
        """Features: the last layer of the encoder for the image, squeezed to a square."""

        async def work() -> Response:
            body = await read_body(request, config.max_bytes)
            if not body.files.get("image"):
                raise Refused(400, "image is missing; send it as a file")
            served, found = await service.embed(body.files["image"], body.fields.get("model", ""))
            return JSONResponse(
                {"model": served.name, "version": served.version, "features": found.tolist()}
            )

        return await answer("/embed", request, work)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        """Models, the default one first, and the methods without training beside them."""
        methods = [{"name": name, "kind": "method", "title": TITLES[name]} for name in METHODS]
        return {
            "models": [*service.models.describe(), *methods],
            "strategies": list(STRATEGIES),
            "samples": list(sample_images.PHOTOGRAPHS),
            "limits": {"bytes": config.max_bytes, "pixels": config.max_pixels},
        }

    @app.get("/hole", responses={200: {"content": {"image/png": {}}}})
    async def hole(
        strategy: Strategy,
        width: int = Query(ge=8, le=MAX_HOLE_SIDE),
        height: int = Query(ge=8, le=MAX_HOLE_SIDE),
        seed: int = Query(0, ge=0, le=1 << 31),
    ) -> Response:
        """A hole as training cuts it, white on black."""
        if width * height > config.max_pixels:
            return _error(413, f"at most {config.max_pixels} pixels")
        try:
            drawn = await asyncio.to_thread(
                hole_masks.strategy_hole, strategy, seed, "page", (height, width), overlap=4
            )
        except BadMask as error:
            return _error(422, str(error))
        _, data = cv2.imencode(".png", drawn.astype(np.uint8) * 255)
        return Response(bytes(data), media_type="image/png")

    @app.get("/samples/{name}", responses={200: {"content": {"image/jpeg": {}}}})
    async def sample(name: str) -> Response:
        """A sample photograph."""
        if name not in sample_images.PHOTOGRAPHS:
            return _error(404, f"no sample '{name}'")
        return Response(await asyncio.to_thread(_sample, name), media_type="image/jpeg")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether models are loaded."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters of the replica that answers, for Prometheus."""
        sizes, service.batcher.sizes = service.batcher.sizes, []
        counts.batches(sizes)
        return Response(counts.text(), media_type="text/plain; version=0.0.4")

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, _static(name, kind), include_in_schema=False)
    return app


@asynccontextmanager
async def _renewing(service: Service, counts: Counts) -> AsyncIterator[None]:
    """While the block runs, models are renewed whose alias moved."""

    async def forever() -> None:
        while True:
            await asyncio.sleep(service.config.reload_s)
            changed = await asyncio.to_thread(service.models.refresh)
            counts.swapped(changed, service.models.failed_reloads)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _static(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    data = files("pipelines.serve").joinpath("page", name).read_bytes()

    async def page() -> Response:
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    return page


@cache
def _sample(name: str) -> bytes:
    return images.encode(sample_images.photograph(name), SAMPLE_QUALITY)


def _body(*names: str) -> dict[str, Any]:
    """The OpenAPI description of a request body."""
    binary, text = {"type": "string", "format": "binary"}, {"type": "string", "format": "byte"}
    more: dict[str, Any] = {"model": {"type": "string", "description": "name of /models"}}
    if "mask" in names:
        more["polarity"] = {"type": "string", "enum": list(POLARITIES), "default": "auto"}

    def schema(file: dict[str, str]) -> dict[str, Any]:
        properties = {**dict.fromkeys(names, file), **more}
        return {"schema": {"type": "object", "required": list(names), "properties": properties}}

    content = {"multipart/form-data": schema(binary), "application/json": schema(text)}
    return {"requestBody": {"required": True, "content": content}}


PNG_OR_JSON: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "PNG for multipart, JSON with the PNG in base64 for JSON.",
        "content": {"image/png": {}, "application/json": {}},
    }
}
DESCRIPTION = (
    "Images and masks are JPEG, PNG, WebP or AVIF. A mask is white on black, black on white, or an "
    "alpha channel (`polarity`), of the image's size or of another of the same shape. Errors are "
    'JSON: `{"error": "..."}`; 413 is too large, 422 an image or mask that cannot be used, 503 '
    "too many requests at once, 504 too slow. Nothing is stored."
)

"""The body of a request: multipart or JSON, read in memory, never beyond a limit."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

FILES = ("image", "mask")
MAX_FIELD_BYTES = 1024


class Refused(Exception):
    """A request that is answered with an error, and why."""

    def __init__(self, status: int, message: str) -> None:
        """The HTTP status beside the message."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Body:
    """Files and fields of a request."""

    files: dict[str, bytes]
    fields: dict[str, str]
    is_json: bool


class _InMemory(MultiPartParser):
    """Nothing of a request reaches a disk."""

    spool_max_size = 1 << 40


async def read_body(request: Request, max_bytes: int) -> Body:
    """Files `image` and `mask` and all other fields.

    Raises:
        Refused: too large, of another kind, or broken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    data = await _read(request, max_bytes)
    if kind == "application/json":
        return _from_json(data)
    if kind == "multipart/form-data":
        return await _from_multipart(request, data)
    raise Refused(415, f"content type is '{kind}'; it must be multipart/form-data or JSON")


async def _read(request: Request, max_bytes: int) -> bytes:
    said = request.headers.get("content-length", "0")
    too_large = Refused(413, f"the request is larger than {max_bytes:,} bytes, the limit here")
    if said.isdecimal() and int(said) > max_bytes:
        raise too_large
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)


def _from_json(data: bytes) -> Body:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise Refused(400, "the body must be a JSON object")
    files, fields = {}, {}
    for name, value in tree.items():
        if name in FILES:
            try:
                files[name] = base64.b64decode(value, validate=True)
            except (TypeError, ValueError, binascii.Error):
                raise Refused(400, f"{name} must be the file in base64") from None
        elif isinstance(value, str | int):
            fields[name] = str(value)
        elif value is not None:
            raise Refused(400, f"{name} must be a text")
    return Body(files, fields, True)


async def _from_multipart(request: Request, data: bytes) -> Body:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await _InMemory(
            request.headers, stream(), max_files=len(FILES), max_part_size=MAX_FIELD_BYTES
        ).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, f"the multipart body is broken: {error}") from None
    files, fields = {}, {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            fields[name] = value
    await form.close()
    return Body(files, fields, False)

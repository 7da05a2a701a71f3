"""Who may ask, and what a browser may do with the answer."""

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page needs nothing but its own files, and blobs of the images that a person opens.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# What holds no model and no image: the page, which asks for the token itself, and probes.
OPEN_PATHS = ("/", "/app.js", "/editor.js", "/style.css", "/docs", "/docs.js", "/openapi.json")
PROBES = ("/healthz",)


class Guard:
    """ASGI middleware: host names, origin, token, headers."""

    def __init__(self, app: ASGIApp, *, names: Collection[str], token: str | None) -> None:
        """Without a token everybody may ask; without names under any name."""
        self._app, self._token = app, token
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused, pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refusal(scope["path"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, why = refused
        more = {"www-authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"error": why}, status, more)(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        if path in PROBES:
            return None
        # A page elsewhere whose name is made to point here, or that posts here, is not our page.
        host = headers.get("host", "")
        if self._names and _name(host) not in self._names:
            return 403, f"the service is not called '{_name(host)}'; start it with --names"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "the request comes from the page of another site"
        if self._token is None or path in OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._token.encode())
        if scheme.lower() == "bearer" and right:
            return None
        return 401, "this service needs its token: Authorization: Bearer TOKEN"


def _name(host: str) -> str:
    """Of a Host header, without the port."""
    name, _, port = host.rpartition(":")
    bare = name if port.isdecimal() and name else host
    return bare.strip("[]").lower()

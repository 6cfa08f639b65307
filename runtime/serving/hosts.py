"""Check the Host header, since web pages may reach a server by their own names (DNS rebinding)."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bita.runtime.serving.errors import error_body


class HostGate:
    """Refuses requests whose Host header has none of the names.

    names: allowed names, in any case; "*" allows all.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        name = host_name(given)
        if name in self._names:
            await self._app(scope, receive, send)
            return
        text = (
            f"the Host header names {name[:100] or 'nothing'!r}, which this server does not answer "
            f"to; start it with --allow-host {name[:100] or 'NAME'}"
        )
        body = error_body(text, "invalid_request_error", "host_not_allowed")
        await JSONResponse(body, 400)(scope, receive, send)


def host_name(header: str) -> str:
    """Return the name in a Host header in lowercase, without its port."""
    header = header.strip().lower()
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.rpartition(":")[0] if header.count(":") == 1 else header

"""Streamed answers, and clients that disconnect before the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


class Stream(StreamingResponse):
    """A response of server-sent events.

    seconds: time limit for the client to receive them all; then the connection ends.
    on_end: called when all are sent, the client has disconnected, or the time limit has passed.
    """

    def __init__(
        self, pieces: AsyncIterator[bytes], seconds: float, on_end: Callable[[], None]
    ) -> None:
        super().__init__(
            pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._seconds = seconds
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with anyio.move_on_after(self._seconds):
                await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def unless_gone(request: Request, wanted: Coroutine[Any, Any, Result]) -> Result:
    """Await `wanted`. Raises ClientDisconnect if the client disconnects first."""
    ended = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((ended, gone), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise ClientDisconnect
        return ended.result()
    finally:
        ended.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event_bytes(body: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()

"""Limits for the number of HTTP connections, and for the time of each.

uvicorn only limits idle connections. Here a connection also ends if a request's header is not
complete in time, or if its client does not receive what is sent. The limit for the body is in
`app.py`.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 1 << 15
IDLE_SECONDS = 5  # maximum pause between two requests


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections."""

    num_connections: int = 256  # at a time; beyond it the longest idle one is closed
    header_seconds: float = 10.0  # from connecting or the last answer to a complete header
    write_seconds: float = 30.0  # time in which a client must receive `write_bytes` bytes
    write_bytes: int = 1 << 15  # or everything that is waiting, if that is less


def server_config(app: Any, limits: ConnectionLimits, **options: Any) -> uvicorn.Config:
    """Return a uvicorn configuration with these limits; `options` are further fields of it."""
    protocol = type("Protocol", (LimitedProtocol,), {"limits": limits})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        **options,
    )


class AnnouncedServer(uvicorn.Server):
    """Prints a line once it accepts requests; from then on an interrupt shuts it down cleanly."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._line, flush=True)


class LimitedProtocol(H11Protocol):
    """An HTTP connection with limits."""

    limits = ConnectionLimits()
    waiting_since: float | None = None  # by the loop's clock; None: a request is being answered
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause as soon as the client is too slow
        self._follow()
        if len(self.connections) > self.limits.num_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._header_timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._write_timer)

    def send_400_response(self, msg: str) -> None:
        """Reject bytes that are not HTTP, and end the request that they belong to."""
        has_begun = self._is_answering and self.cycle.response_started
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if has_begun:
            self.transport.close()
        else:
            super().send_400_response(msg)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _follow(self) -> None:
        """Start or stop the timer for the next request's header."""
        if self._is_answering:
            self.waiting_since = None
            _cancel(self._header_timer)
        elif self.waiting_since is None:
            self.waiting_since = self.loop.time()
            self._header_timer = self.loop.call_later(
                self.limits.header_seconds, self.transport.close
            )

    def _make_room(self) -> None:
        """Close the connection that has waited longest for a request."""
        waiting = [
            (each.waiting_since, number, each)
            for number, each in enumerate(self.connections)
            if isinstance(each, LimitedProtocol)
            and each.waiting_since is not None
            and not each.transport.is_closing()
        ]
        if waiting:
            min(waiting)[-1].transport.abort()

    def _watch_writing(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(
            self.limits.write_seconds, self._check_writing, unsent
        )

    def _check_writing(self, unsent: int) -> None:
        """Close the connection unless the client has received enough of the unsent bytes."""
        if unsent - self.transport.get_write_buffer_size() < self.limits.write_bytes:
            self.transport.abort()
        else:
            self._watch_writing()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

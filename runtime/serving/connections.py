"""Connections of the HTTP server: how many there are, and how long each may take.

uvicorn has a limit for idle connections only. Here a connection also ends if a request's header is
not complete in time, and if its client does not take what is sent. The body has its limit in
`app.py`.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 1 << 15
IDLE_SECONDS = 5  # without a byte between two requests


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take."""

    num_connections: int = 256  # at once; beyond them the one that has waited longest is closed
    header_seconds: float = 10.0  # from connecting, or the last answer, to a request's whole header
    write_seconds: float = 30.0  # in which a client takes `write_bytes` of what waits for it
    write_bytes: int = 1 << 15  # or all, if that is less


def server_config(app: Any, limits: ConnectionLimits, **options: Any) -> uvicorn.Config:
    """How uvicorn serves an application within limits. options: more for uvicorn.Config."""
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
    """Prints a line once it answers; from then on an interrupt shuts it down cleanly."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._line, flush=True)


class LimitedProtocol(H11Protocol):
    """One connection."""

    limits = ConnectionLimits()
    waiting_since: float | None = None  # for a request, by the loop's clock; None: one is answered
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause as soon as the client does not keep up
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
        """Refuse bytes that are not HTTP, and end the request that they are part of."""
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
        """Start or stop the wait for a request, whichever it is time for."""
        if self._is_answering:
            self.waiting_since = None
            _cancel(self._header_timer)
        elif self.waiting_since is None:
            self.waiting_since = self.loop.time()
            self._header_timer = self.loop.call_later(
                self.limits.header_seconds, self.transport.close
            )

    def _make_room(self) -> None:
        """Close the connection that has waited longest for a request; this one, if none waits."""
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
        """Close the connection, unless the client has taken enough of what was unsent."""
        if unsent - self.transport.get_write_buffer_size() < self.limits.write_bytes:
            self.transport.abort()
        else:
            self._watch_writing()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

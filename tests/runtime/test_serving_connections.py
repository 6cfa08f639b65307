"""Slow clients cannot hold a connection or a place in the queue forever."""

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import MESSAGES, Running, running
from uvicorn.server import ServerState

from bita.runtime.serving import app
from bita.runtime.serving.connections import (
    MAX_HEADER_BYTES,
    ConnectionLimits,
    LimitedProtocol,
    server_config,
)
from bita.runtime.serving.log_lines import LogLines

IMPATIENT = ConnectionLimits(num_connections=6, header_seconds=0.3, write_seconds=0.3)
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
# An answer of a quarter of a megabyte, more than the buffers of `connect_narrow` hold.
LARGE: dict[str, Any] = {
    **{"messages": MESSAGES, "max_tokens": 100, "ignore_eos": True},
    **{"logprobs": True, "top_logprobs": 20},
}


def connect_narrow(server: Running) -> socket.socket:
    """Connect with buffers of a few kilobytes at both ends."""
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return connect(server, receives=4096)


def connect(server: Running, receives: int = 1 << 16) -> socket.socket:
    """Connect to the server; the client's buffer has `receives` bytes."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    client.settimeout(30)
    client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    return client


def trickle_until_closed(client: socket.socket, bytes_: bytes = b"a" * 10_000) -> bytes:
    """Send a byte about every 50 ms until the server closes, and return its answer."""
    answer = b""
    client.settimeout(0.05)
    for byte in bytes_:
        try:
            client.sendall(bytes([byte]))
            piece = client.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return answer
        if not piece:
            return answer
        answer += piece
    raise AssertionError("the server accepted every byte")


def body_of(content: Any) -> bytes:
    data = json.dumps(content).encode()
    return POST + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


def chat_of(content: Any) -> bytes:
    return body_of(content).replace(b"/completions", b"/chat/completions")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nX: ",
        POST.replace(b"application/json", b"text/plain") + b"Content-Length: 100000\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
    ids=["nothing", "header", "second request", "pipelined", "refused body", "chunked"],
)
def test_a_client_that_sends_a_byte_at_a_time_is_closed(
    tiny_engine: Path, beginning: bytes
) -> None:
    with running(tiny_engine, IMPATIENT) as server, connect(server) as client:
        client.sendall(beginning)
        trickle_until_closed(client)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_silent_client_is_closed(tiny_engine: Path) -> None:
    with running(tiny_engine, IMPATIENT) as server, connect(server) as client:
        assert client.recv(1) == b""


def test_a_body_has_a_time_limit(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    with running(tiny_engine) as server, connect(server) as client:
        client.sendall(POST + b"Content-Length: 100000\r\n\r\n{")
        answer = trickle_until_closed(client)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"connection: close" in answer.lower()
        assert not server.server.line.num_taken


def test_a_header_has_a_size_limit(tiny_engine: Path) -> None:
    with running(tiny_engine) as server, connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * (MAX_HEADER_BYTES + 1))
        assert b" 400 " in client.recv(65536).split(b"\r\n")[0]
        assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_stops_reading_frees_its_place(tiny_engine: Path, stream: bool) -> None:
    with running(tiny_engine, IMPATIENT, num_waiting=0) as server, connect_narrow(server) as client:
        client.sendall(chat_of({**LARGE, "stream": stream}))
        client.recv(1)  # the answer has begun
        server.wait_until(lambda: not server.num_connections)
        server.wait_until(lambda: not server.server.line.num_taken)
        assert server.post(json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200


class Transport(asyncio.Transport):
    """A transport with given amounts of unsent data; sets `done` at the last one."""

    def __init__(self, unsent: list[int]) -> None:
        super().__init__()
        self.done = asyncio.Event()
        self.is_aborted = False
        self._unsent = unsent

    def get_write_buffer_size(self) -> int:
        if len(self._unsent) == 1:
            self.done.set()
        return self._unsent.pop(0)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(
    ("unsent", "is_aborted"),
    [([100, 100], True), ([100, 90, 80, 71], True), ([100, 90, 80, 70], False)],
)
def test_a_client_that_reads_fast_enough_is_not_closed(unsent: list[int], is_aborted: bool) -> None:
    async def watch() -> bool:
        transport, loop = Transport(unsent), asyncio.get_running_loop()
        config = server_config(None, ConnectionLimits(write_seconds=0.01, write_bytes=10))
        protocol = LimitedProtocol(config, ServerState(), {}, loop)
        protocol.limits = ConnectionLimits(write_seconds=0.01, write_bytes=10)
        protocol.connection_made(transport)
        protocol.pause_writing()
        await transport.done.wait()
        protocol.resume_writing()
        return transport.is_aborted

    assert asyncio.run(watch()) == is_aborted


def test_a_stream_ends_at_its_time_limit(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit applies to a client that reads just fast enough to stay connected."""
    monkeypatch.setattr(app, "TAKING_SECONDS", -19.0)
    patient = ConnectionLimits(write_seconds=60)
    with (
        running(tiny_engine, patient, request_seconds=20) as server,
        connect_narrow(server) as client,
    ):
        client.sendall(chat_of({**LARGE, "stream": True}))
        client.recv(1)
        server.wait_until(lambda: not server.server.line.num_taken)


def test_idle_connections_are_closed_to_make_room(tiny_engine: Path) -> None:
    limits = ConnectionLimits(num_connections=6)
    with running(tiny_engine, limits) as server:
        idle = [connect(server) for _ in range(20)]
        for _ in range(3):
            assert server.post(json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200
        assert server.num_connections <= 6
        for client in idle[:14]:
            assert client.recv(1) == b""
        for client in idle:
            client.close()


def test_a_connection_with_a_running_answer_is_not_closed_to_make_room(tiny_engine: Path) -> None:
    limits = ConnectionLimits(num_connections=2)
    with running(tiny_engine, limits) as server, connect(server) as first:
        with server.gate.closed():
            first.sendall(body_of({"prompt": "Hello", "max_tokens": 3}))
            server.wait_until(lambda: server.gate.num_waiting == 1)
            others = [connect(server) for _ in range(4)]
            assert others[0].recv(1) == b""
        assert b" 200 " in first.recv(65536).split(b"\r\n")[0]
        for client in others:
            client.close()


@pytest.mark.parametrize(
    "beginning", [POST, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"], ids=["POST", "GET"]
)
def test_a_malformed_chunked_body_ends_its_request(
    tiny_engine: Path, beginning: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tiny_engine) as server, connect(server) as client:
        client.sendall(beginning + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{....no chunk\r\n")
        while client.recv(65536):
            pass
        assert not server.server.line.num_taken
        assert server.post(json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "WARNING" not in line] == []
    assert len(lines) == 1  # the warning that it is not HTTP


def test_log_lines_are_short_and_printable() -> None:
    formatter = LogLines()

    def line(message: str, fault: BaseException | None = None) -> str:
        info = (type(fault), fault, None) if fault else None
        return formatter.format(
            logging.LogRecord("bita", logging.INFO, "", 0, "%s", (message,), info)
        )

    assert line("Grüße, 木").endswith(" bita INFO Grüße, 木")
    assert line("GET /\n2026 bita INFO forged \x1b[31m\x00").endswith(
        r"GET /\n2026 bita INFO forged \x1b[31m\x00"
    )
    assert len(line("x" * 10**6)) < 1100
    assert line("x" * 10**6).endswith("x... (1000000 characters)")
    failure = line("failed", ValueError("bad \x1b value\nsecond line" + "y" * 10**6))
    assert len(failure) < 9000
    assert "\x1b" not in failure
    assert all(each.startswith("  ") for each in failure.splitlines()[1:])

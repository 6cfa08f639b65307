"""A server in a thread, whose engine can be paused."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from deadlines import wait_until

from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.serving.app import Server
from bita.runtime.serving.connections import ConnectionLimits, server_config
from bita.runtime.serving.settings import ServerSettings
from bita.runtime.session import Session

MESSAGES: Any = [{"role": "user", "content": "Hello tree"}]


class Gate:
    """A gate that lets steps of a session pass or holds them back."""

    def __init__(self, session: Session) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.num_steps = 0
        self.num_waiting = 0
        self.sequences: list[TokenSequence] = []  # the sequence of each step
        decoder, step = session.decoder, session.decoder.step

        def gated(sequence: TokenSequence) -> list[int]:
            self.num_waiting += 1
            self.is_open.wait(30)
            self.num_waiting -= 1
            self.num_steps += 1
            self.sequences.append(sequence)
            return step(sequence)

        pytest.MonkeyPatch().setattr(decoder, "step", gated)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.is_open.clear()
        try:
            yield
        finally:
            self.is_open.set()


class Running:
    """A server in a thread; `alone` generates the same answer without it."""

    def __init__(
        self, engine: Path, limits: ConnectionLimits | None = None, **settings: Any
    ) -> None:
        self.session = Session.open(engine, num_threads=1, keep_answers=True)
        self.other = Session.open(engine, num_threads=1)
        self.gate = Gate(self.session)
        given = {"model_name": "tiny", "defaults": {"temperature": 0.0}, **settings}
        self.server = Server(self.session, ServerSettings(**given))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = server_config(self.server.app, limits or ConnectionLimits(), log_level="warning")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [self.listener]}
        )
        self._thread.start()

    @property
    def num_connections(self) -> int:
        return len(self._uvicorn.server_state.connections)

    def alone(self, prompt: Any, max_new_tokens: int = 20, **options: Any) -> Any:
        self.other.forget()
        return self.other.generate(prompt, max_new_tokens, **options)

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def post(self, path: str = "chat/completions", **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", timeout=30, **options)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        wait_until(is_so, self._thread)

    def stop(self) -> None:
        self.gate.is_open.set()
        self._uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def running(
    engine: Path, limits: ConnectionLimits | None = None, **settings: Any
) -> Iterator[Running]:
    server = Running(engine, limits, **settings)
    try:
        yield server
    finally:
        server.stop()

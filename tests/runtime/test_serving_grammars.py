"""Structured output through the server: strict, whitespace, and grammars that cost too much."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from deadlines import wait_until
from hostile_grammars import HOSTILE
from running_server import MESSAGES, Running, running

from bita.runtime.text import grammar_trial

OPEN = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "required": ["n"],
}
NAMES = ("intersected patterns", "many optional letters", "intersected terminals")


@pytest.fixture(scope="module")
def server(tiny_engine: Path) -> Iterator[Running]:
    with running(tiny_engine, max_body_bytes=1 << 20) as server:
        yield server


def ask(server: Running, **fields: Any) -> httpx.Response:
    return server.post(json={"messages": MESSAGES, "max_tokens": 200, **fields})


def shape(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}


def hostile(name: str) -> dict[str, Any]:
    kind, text = HOSTILE[name]
    if kind == "json_schema":
        return shape(json.loads(text))
    name = "regex" if kind == "regex" else "grammar"
    return {"type": name, name: text}


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_strict_allows_no_other_properties(server: Running) -> None:
    """A bias makes a property name likely that the schema does not have."""
    bias = {str(token): 8 for token in server.other.encode('","')}
    found = {
        strict: {
            frozenset(json.loads(content(response)))
            for seed in range(6)
            if (
                response := ask(
                    server,
                    response_format=shape(OPEN, strict=strict),
                    logit_bias=bias,
                    temperature=1,
                    seed=seed,
                )
            ).json()["choices"][0]["finish_reason"]
            == "stop"
        }
        for strict in (True, False)
    }
    assert found[True] == {frozenset({"n"})}
    assert found[False] != found[True]


@pytest.mark.parametrize("guidance", [None, {"whitespace_flexible": True}])
def test_whitespace_is_allowed_only_on_request(
    server: Running, guidance: dict[str, Any] | None
) -> None:
    schema = OPEN if guidance is None else {**OPEN, "x-guidance": guidance}
    bias = {str(token): 8 for token in server.other.encode(" ")}
    texts = [
        content(
            ask(
                server,
                response_format=shape(schema, strict=True),
                logit_bias=bias,
                temperature=1,
                seed=seed,
            )
        )
        for seed in range(4)
    ]
    assert any(" " in text for text in texts) == (guidance is not None)


@pytest.mark.slow
def test_hostile_grammars_are_refused_while_others_are_served(server: Running) -> None:
    """Each gets a 400, /health always answers within a second, and later answers do not change."""
    before = content(ask(server, max_tokens=9))
    slowest, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal slowest
        with httpx.Client() as client:
            while not is_over.is_set():
                began = time.monotonic()
                assert client.get(f"{server.url}/health", timeout=30).status_code == 200
                slowest = max(slowest, time.monotonic() - began)

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch)
        formats = [hostile(name) for name in NAMES]
        asked = [pool.submit(ask, server, response_format=each) for each in formats]
        refusals = [each.result() for each in asked]
        is_over.set()
        watching.result()
    for refusal in refusals:
        assert refusal.status_code == 400
        assert "takes more than" in refusal.json()["error"]["message"]
        assert refusal.json()["error"]["type"] == "invalid_request_error"
    assert slowest < 1
    assert content(ask(server, max_tokens=9)) == before


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_grammar_that_fails_in_a_step_ends_the_answer(server: Running, is_stream: bool) -> None:
    given = hostile("repetitions of repetitions")
    response = ask(server, response_format=given, stream=is_stream)
    assert "cannot be followed further" in response.text
    assert response.status_code == 400
    assert content(ask(server, response_format={"type": "regex", "regex": "[ab]{3}"}))


def test_compiling_stops_when_the_client_leaves(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial, "MAX_SECONDS", 100.0)
    schema = {"title": "of its own", **json.loads(HOSTILE["intersected patterns"][1])}
    body = {"messages": MESSAGES, "response_format": shape(schema)}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.25)
    began = time.monotonic()
    wait_until(lambda: not grammar_trial._one_at_a_time.locked(), server._thread)
    assert time.monotonic() - began < 30
    server.wait_until(lambda: server.server.line.num_taken == 0)


def test_choices_of_one_request_are_compiled_once(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    real = grammar_trial._run

    def run(request: str, *args: Any) -> Any:
        tried.append(request)
        return real(request, *args)

    monkeypatch.setattr(grammar_trial, "_run", run)
    pattern = {"type": "string", "pattern": "^[ab]{3}$"}
    response = ask(server, response_format=shape(pattern), n=8, temperature=1)
    texts = [choice["message"]["content"] for choice in response.json()["choices"]]
    assert len(tried) == 1
    assert all(len(json.loads(text)) == 3 for text in texts)

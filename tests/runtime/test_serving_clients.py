"""Clients of a server that wait, leave, lack a key, or are many."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running_server import MESSAGES, running

from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.turns import SLICE_STEPS


def test_a_second_client_waits_while_one_is_answered(tiny_engine: Path) -> None:
    """The first stream ends before the second begins."""
    with running(tiny_engine, num_running=1) as server, ThreadPoolExecutor() as pool:
        order: list[str] = []

        def stream(name: str) -> str:
            text = ""
            for chunk in server.client().chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=30, seed=1, stream=True
            ):
                order.append(name)
                text += chunk.choices[0].delta.content or ""
            return text

        with server.gate.closed():
            first = pool.submit(stream, "first")
            server.wait_until(lambda: server.gate.num_waiting == 1)
            second = pool.submit(stream, "second")
            server.wait_until(lambda: server.server.line.num_waiting == 1)
            assert (
                server.metric("bita_requests_waiting")
                == server.metric("bita_requests_running")
                == 1
            )
        assert first.result() == second.result() == server.alone(MESSAGES, 30).text
        assert order[0] == "first"
        sequences = [sequence for sequence, _ in groupby(server.gate.sequences)]
        assert len(sequences) == 2  # the second takes no step before the first ends


def test_clients_alternate_in_slices_if_they_cannot_share_steps(tiny_engine: Path) -> None:
    with running(tiny_engine) as server, ThreadPoolExecutor() as pool:
        ask = {"messages": MESSAGES, "max_tokens": 60, "ignore_eos": True, "seed": 1}
        with server.gate.closed():
            first = pool.submit(server.post, json=ask)
            server.wait_until(lambda: server.gate.num_waiting == 1)
            second = pool.submit(server.post, json=ask)
            server.wait_until(lambda: server.server.line.num_taken == 2)
        texts = [
            each.result().json()["choices"][0]["message"]["content"] for each in (first, second)
        ]
        assert texts == 2 * [server.alone(MESSAGES, 60, ignore_eos=True).text]
        slices = [len([*steps]) for _, steps in groupby(server.gate.sequences)]
        assert len(slices) > 3
        assert max(slices[1:-1]) == SLICE_STEPS  # the first slice may have begun earlier


def test_a_full_queue_is_reported(tiny_engine: Path) -> None:
    with (
        running(tiny_engine, num_waiting=1, num_running=1) as server,
        ThreadPoolExecutor() as pool,
    ):
        request = {"messages": MESSAGES, "max_tokens": 5}
        with server.gate.closed():
            first = pool.submit(server.post, json=request)
            server.wait_until(lambda: server.gate.num_waiting == 1)
            second = pool.submit(server.post, json=request)
            server.wait_until(lambda: server.server.line.num_waiting == 1)
            with pytest.raises(openai.RateLimitError, match="server already has 2 requests"):
                server.client().chat.completions.create(model="tiny", messages=MESSAGES)
            refused = server.post(json=request)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert server.post(json=request).status_code == 200


@pytest.mark.parametrize("streams", [True, False])
def test_a_leaving_client_frees_its_place_within_a_step(tiny_engine: Path, streams: bool) -> None:
    with running(tiny_engine, num_waiting=0) as server:
        body = {"messages": MESSAGES, "max_tokens": 300, "ignore_eos": True, "stream": streams}
        line = server.server.line
        with server.gate.closed():
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.3)
            server.wait_until(
                lambda: line.num_waiting + line.num_running <= 1 and not line.num_taken
            )
            before = server.gate.num_steps
        server.wait_until(lambda: line.num_running == 0)
        assert server.gate.num_steps - before <= 1
        assert server.post(json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200
        server.wait_until(
            lambda: server.metric('bita_answers_total{finish_reason="cancelled"}') == 1
        )


def test_a_client_can_leave_in_the_middle_of_a_stream(tiny_engine: Path) -> None:
    with running(tiny_engine, num_waiting=0) as server:
        stream = server.client().chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=350,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream)
        server.gate.is_open.clear()
        for _ in range(2):
            next(chunks)
        server.wait_until(lambda: server.gate.num_waiting == 1)
        stream.close()
        server.wait_until(lambda: not server.server.line.num_taken)
        before = server.gate.num_steps
        server.gate.is_open.set()
        server.wait_until(lambda: server.server.line.num_running == 0)
        assert server.gate.num_steps - before <= 1


def test_a_waiting_client_can_leave(tiny_engine: Path) -> None:
    with running(tiny_engine, num_waiting=1) as server, ThreadPoolExecutor() as pool:
        line = server.server.line
        with server.gate.closed():
            first = pool.submit(server.post, json={"messages": MESSAGES, "max_tokens": 5})
            server.wait_until(lambda: server.gate.num_waiting == 1)
            for streams in (True, False):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(
                        f"{server.url}/v1/chat/completions",
                        json={"messages": MESSAGES, "stream": streams},
                        timeout=0.2,
                    )
                server.wait_until(lambda: line.num_waiting == 0)
        assert first.result().status_code == 200
        assert server.gate.num_steps < 10


def test_waiting_and_running_requests_have_a_time_limit(tiny_engine: Path) -> None:
    with running(tiny_engine, request_seconds=0.4) as server, ThreadPoolExecutor() as pool:
        with server.gate.closed():
            first = pool.submit(
                server.post, json={"messages": MESSAGES, "max_tokens": 99, "ignore_eos": True}
            )
            server.wait_until(lambda: server.gate.num_waiting == 1)
            waited = server.post(json={"messages": MESSAGES})
            assert (waited.status_code, waited.json()["error"]["code"]) == (503, "timeout")
        cut = first.result()
        assert cut.json()["choices"][0]["finish_reason"] == "length"
        assert cut.json()["usage"]["completion_tokens"] < 99
        assert server.post(json={"messages": MESSAGES, "max_tokens": 3}).status_code == 200


def test_an_api_key_is_required(tiny_engine: Path) -> None:
    with running(tiny_engine, api_key="s3cret") as server:
        with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
            server.client(api_key="wrong").models.list()
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/v1/models").headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert [each.id for each in server.client(api_key="s3cret").models.list()] == ["tiny"]


def test_unknown_hosts_and_origins_are_refused(tiny_engine: Path) -> None:
    """Other host names (DNS rebinding) and origins that were not allowed get no access."""
    settings: dict[str, Any] = {
        "allowed_hosts": ("127.0.0.1",),
        "allowed_origins": ("http://mine",),
    }
    with running(tiny_engine, **settings) as server:
        assert httpx.get(f"{server.url}/health", headers={"Host": "evil.com"}).status_code == 400
        for origin, allowed in (("http://mine", "http://mine"), ("http://evil", None)):
            response = httpx.get(f"{server.url}/health", headers={"Origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed


def test_an_engine_error_is_reported_and_the_next_request_works(tiny_engine: Path) -> None:
    with running(tiny_engine) as server:
        decoder, step = server.session.decoder, server.session.decoder.step

        def broken(sequence: TokenSequence) -> list[int]:
            if len(sequence.token_ids) > sequence.num_prompt_tokens + 2:
                raise RuntimeError("broken on purpose")
            return step(sequence)

        body = {"messages": MESSAGES, "max_tokens": 9}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "step", broken)
            whole = server.post(json=body)
            assert whole.status_code == 500
            assert whole.json()["error"]["message"] == "the server failed; see its log"
            streamed = server.post(json={**body, "stream": True})
            assert "the server failed; see its log" in streamed.text
            assert "[DONE]" not in streamed.text
        assert server.post(json=body).status_code == 200


@pytest.mark.slow
def test_many_clients_get_their_own_answers(tiny_engine: Path) -> None:
    """Eight clients send 200 requests, whole and streamed; none is lost or mixed up."""
    with running(tiny_engine) as server:
        prompts = [f"Question {number} about trees" for number in range(25)]
        expected = [
            server.alone(
                [{"role": "user", "content": prompt}], 16, temperature=0.7, seed=number
            ).text
            for number, prompt in enumerate(prompts)
        ]

        def ask(number: int) -> bool:
            which = number % len(prompts)
            options: dict[str, Any] = {
                "model": "tiny",
                "messages": [{"role": "user", "content": prompts[which]}],
                "max_tokens": 16,
                "temperature": 0.7,
                "seed": which,
            }
            client = server.client()
            if number % 2:
                chunks = client.chat.completions.create(stream=True, **options)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                text = client.chat.completions.create(**options).choices[0].message.content
            return text == expected[which]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(200)))
        server.wait_until(lambda: not server.server.line.num_taken)
        assert server.session.decoder.shared_cache.store.num_bytes > 0

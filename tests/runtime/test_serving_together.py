"""Clients whose answers share steps get the same text as alone, and none waits unfairly."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from native_engines import FEATURES, native_engine, require_library
from running_server import MESSAGES, Running, running

TEXT = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", 600).path


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[Running]:
    with running(engine) as started:
        yield started


def prompt(number: int) -> str:
    return f"{TEXT * (number % 4)}Question {number}: why?"


def options(number: int) -> dict[str, Any]:
    chosen: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9},
        {"logit_bias": {"70": 3.0}},
        {"frequency_penalty": 0.5},
    ]
    return {"max_tokens": 10 + number % 30, "seed": number, **chosen[number % 4]}


def answer_alone(server: Running, number: int) -> str:
    given = options(number)
    bias = {int(token): value for token, value in given.pop("logit_bias", {}).items()}
    answer = server.alone(prompt(number), given.pop("max_tokens"), logit_bias=bias, **given)
    return str(answer.text)


def stream_text(server: Running, number: int, pieces: int | None = None) -> str:
    """Return the text of a stream, or of its first pieces, after which the client leaves."""
    stream = server.client().completions.create(
        model="tiny", prompt=prompt(number), stream=True, **options(number)
    )
    text = ""
    for count, chunk in enumerate(stream):
        text += chunk.choices[0].text
        if count == pieces:
            stream.close()
            break
    return text


def test_each_of_many_clients_gets_its_own_text(server: Running) -> None:
    """Twelve requests run at a time: streams, whole answers, and clients that leave early."""
    whole = [answer_alone(server, number) for number in range(48)]

    def ask(number: int) -> str:
        if number % 3 == 0:
            body = {"model": "tiny", "prompt": prompt(number), **options(number)}
            return str(server.post("completions", json=body).json()["choices"][0]["text"])
        return stream_text(server, number, 4 if number % 5 == 1 else None)

    steps = server.metric("bita_step_seconds_count"), server.metric("bita_steps_total")
    with ThreadPoolExecutor(12) as pool:
        found = [*pool.map(ask, range(48))]
    for number, (text, right) in enumerate(zip(found, whole, strict=True)):
        left = number % 3 and number % 5 == 1
        assert right.startswith(text) if left else text == right
    server.wait_until(lambda: server.server.line.num_taken == 0)
    run = server.metric("bita_step_seconds_count") - steps[0]
    of_texts = server.metric("bita_steps_total") - steps[1]
    assert run < of_texts / 2
    assert server.metric("bita_step_rows_total") >= server.metric("bita_steps_total")
    assert server.metric("bita_requests_running") == 0


def test_choices_of_a_stream_are_interleaved(server: Running) -> None:
    body = {"messages": MESSAGES, "n": 3, "max_tokens": 20, "seed": 4, "temperature": 1.0}
    whole = server.post(json=body).json()["choices"]
    lines = server.post(json={**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    order, texts, ended = [], ["", "", ""], set()
    for chunk in chunks:
        choice = chunk["choices"][0]
        index = choice["index"]
        assert index not in ended
        texts[index] += choice["delta"].get("content") or ""
        order.append(index)
        if choice["finish_reason"] is not None:
            ended.add(index)
    assert texts == [each["message"]["content"] for each in whole]
    assert ended == {0, 1, 2}
    assert sum(left != right for left, right in pairwise(order)) > 6


def test_a_client_with_one_request_does_not_wait_for_all_of_another(engine: Path) -> None:
    """One answer runs at a time; six requests of one user precede one of another in the queue."""
    with running(engine, num_running=1) as server, ThreadPoolExecutor(8) as pool:
        ended: list[str] = []
        lock = threading.Lock()

        def ask(user: str) -> None:
            body = {"messages": MESSAGES, "max_tokens": 12, "user": user}
            assert server.post(json=body).status_code == 200
            with lock:
                ended.append(user)

        with server.gate.closed():
            asked = [pool.submit(ask, "many")]
            server.wait_until(lambda: server.gate.num_waiting == 1)
            for count in range(5):
                asked.append(pool.submit(ask, "many"))
                server.wait_until(lambda: len(server.server.line._jobs) > count)  # noqa: B023
            asked.append(pool.submit(ask, "one"))
            server.wait_until(lambda: len(server.server.line._jobs) == 6)
        for each in asked:
            each.result()
        assert ended.index("one") <= 2


def test_a_long_answer_does_not_delay_a_short_request(server: Running) -> None:
    with ThreadPoolExecutor() as pool:
        long = {"messages": MESSAGES, "max_tokens": 500, "ignore_eos": True}
        first = pool.submit(server.post, json=long)
        server.wait_until(lambda: server.server.line.num_running == 1)
        short = server.post(json={"messages": MESSAGES, "max_tokens": 3})
        assert short.json()["usage"]["completion_tokens"] == 3
        assert not first.done()
        assert first.result().status_code == 200


def test_a_prompt_is_scored_during_running_answers(server: Running) -> None:
    """The rows of the answers stay in place, and nothing is read again."""
    with ThreadPoolExecutor() as pool:
        asked = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True}
        running_ones = [pool.submit(server.post, json={**asked, "seed": n}) for n in range(3)]
        server.wait_until(lambda: server.server.line.num_running == 3)
        body = {"prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}
        scored = server.post("completions", json=body).json()["choices"][0]
        assert scored["text"] == TEXT
        texts = [each.result().json()["choices"][0]["message"]["content"] for each in running_ones]
    expected = server.alone(MESSAGES, 400, ignore_eos=True).text
    assert texts == 3 * [expected]
    assert scored["logprobs"]["token_logprobs"][1:] == [
        pytest.approx(each.logprob) for each in server.other.score(TEXT)
    ]


def test_answers_without_a_limit_get_the_default_limit(engine: Path) -> None:
    with running(engine, answer_tokens=9) as server:
        answer = server.post(json={"messages": MESSAGES, "ignore_eos": True}).json()
        assert answer["usage"]["completion_tokens"] == 9
        assert answer["choices"][0]["finish_reason"] == "length"
